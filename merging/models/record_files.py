"""Reads records from .jsonl, .jsonl.gz, .csv and .parquet files one by one, within bounds.

A line may have 4 Mi characters, and 1,000 lines and two for each record may be blank. A compressed file may
unpack to 256 MiB, or to 100 times its size if that is more: real texts compress to about a fourth. Each
record counts as 200 bytes more, which it takes in memory.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.conversations import FIELDS, TEXT, TEXT_PAIR, text_of

_LONGEST_LINE = 1 << 22
_UNPACKED, _UNPACKED_RATIO, _RECORD_BYTES = 1 << 28, 100, 200
_BLANK_LINES, _BLANK_TO_A_RECORD = 1000, 2
_LONGEST_NUMBER = 40  # digits
_PARQUET_BATCH = 256
_LABEL = "label"


class Record(NamedTuple):
    """A record and where it is, as "line 3" or "record 3"."""

    place: str
    values: dict[str, Any]


def count_records(path: Path) -> int:
    """Returns the number of a file's records. Raises: any error on a damaged file."""
    if path.suffix == ".parquet":
        with _parquet_file(path) as file:
            return int(file.metadata.num_rows)
    return sum(1 for _ in _unparsed(path))


def read_records(path: Path, rows: NDArray[np.int64] | None) -> Iterator[Record]:
    """Yields the records of these ascending rows, or all; others are not parsed. Raises: as above."""
    wanted, last = (None, -1) if rows is None else (set(rows.tolist()), int(rows.max(initial=-1)))
    for row, (place, found) in enumerate(_unparsed(path)):
        if wanted is None or row in wanted:
            yield Record(place, _parsed(place, found))
        if row == last:
            return


class UnpackedBytes:
    """Counts what a compressed file unpacks to."""

    def __init__(self, path: Path) -> None:
        self._most, self._found = max(_UNPACKED, _UNPACKED_RATIO * path.stat().st_size), 0

    def add(self, size: int, records: int = 0) -> None:
        """Counts bytes and records. Raises: ValueError if there are now more than there may be."""
        self._found += size + _RECORD_BYTES * records
        if self._found > self._most:
            raise ValueError(
                f"unpacks to more than {self._most:,} bytes, over {_UNPACKED_RATIO} times its size, each "
                f"record counted as {_RECORD_BYTES} more; if this is right, do not compress it"
            )


def _unparsed(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the place of each record, and its line, or its values."""
    if path.suffix == ".parquet":
        yield from ((f"record {n}", values) for n, values in enumerate(_parquet_records(path), 1))
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = csv.DictReader(_lines(file), strict=True)
            if len(set(records.fieldnames or ())) < len(records.fieldnames or ()):
                raise ValueError("its header has a column twice; name each column once")
            for number, values in enumerate(records, 1):
                if None in values:
                    raise ValueError(
                        f"record {number} has more cells than the header; quote texts with commas"
                    )
                yield f"record {number}", values
    else:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as data:
            text, unpacked = io.TextIOWrapper(data, encoding="utf-8-sig", newline="\n"), UnpackedBytes(path)
            blank = 0
            for number, line in enumerate(_lines(text), 1):
                if path.suffix == ".gz":
                    unpacked.add(len(line), records=1)
                if line.strip():
                    yield f"line {number}", line
                    continue
                blank += 1
                if blank > _BLANK_LINES + _BLANK_TO_A_RECORD * (number - blank):
                    raise ValueError(f"{blank:,} of its first {number:,} lines are blank; remove them")


def _lines(file: io.TextIOBase | io.TextIOWrapper) -> Iterator[str]:
    """Yields the lines of a file. Raises: ValueError on one that is too long."""
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"line {number} has more than {_LONGEST_LINE:,} characters")
        yield line


def _parsed(place: str, found: Any) -> dict[str, Any]:
    """Returns a record's values. Raises: ValueError."""
    values = _json(place, found) if isinstance(found, str) else found
    held = values if isinstance(values, dict) else {}
    return {TEXT: text_of(held, place), _LABEL: held.get(_LABEL)}


def _json(place: str, line: str) -> Any:
    try:
        return json.loads(line, parse_int=_integer)
    except json.JSONDecodeError as reason:
        raise ValueError(f"{place}, column {reason.colno}: {reason.msg}") from reason
    except RecursionError as reason:
        raise ValueError(f"{place}: its lists and objects are nested too deeply") from reason


def _integer(digits: str) -> int | float:
    """Returns a number of JSON, infinity for one that is longer than any number of a class or an example."""
    return int(digits) if len(digits) <= _LONGEST_NUMBER else float("inf")


def _parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields records one by one, as a text that is stored once may be that of many rows."""
    unpacked = UnpackedBytes(path)
    with _parquet_file(path) as file:
        held = file.schema_arrow.names
        wanted = (TEXT, TEXT_PAIR, _LABEL) if TEXT in held else (*FIELDS, _LABEL)
        columns = [name for name in wanted if name in held]
        for batch in file.iter_batches(_PARQUET_BATCH, columns=columns):
            for row in range(batch.num_rows):
                values = {name: batch.column(name)[row].as_py() for name in columns}
                letters = sum(len(str(values[name])) for name in columns if name != _LABEL)
                unpacked.add(letters, records=1)
                yield values


def _parquet_file(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as reason:
        raise InputError(
            f"{path}: reading .parquet needs pyarrow; pip install 'flexswitch[eval]'"
        ) from reason
    names = pyarrow.parquet.read_schema(path).names
    file = pyarrow.parquet.ParquetFile(path, read_dictionary=[name for name in (TEXT,) if name in names])
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    UnpackedBytes(path).add(sum(group.total_byte_size for group in groups), file.metadata.num_rows)
    return file
