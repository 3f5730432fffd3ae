"""Reads a task's examples: `DIR/<task>.<split>` as .jsonl.gz, .jsonl, .csv, .parquet or .npz."""

import csv
import gzip
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError

SUFFIXES = (".jsonl.gz", ".jsonl", ".csv", ".parquet", ".npz")


Inputs = Sequence[str] | NDArray[Any]


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs of one task and, where the file has them, their labels.

    inputs: a list of texts, or an array (example, ...) of images. labels: (example,) int64 or None.
    """

    inputs: Inputs
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: NDArray[np.int64]) -> "Examples":
        """Returns the examples of these rows, in this order."""
        labels = None if self.labels is None else self.labels[rows]
        if isinstance(self.inputs, np.ndarray):
            return Examples(self.inputs[rows], labels)
        return Examples([self.inputs[row] for row in rows], labels)

    def by_length(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows ordered by the length of their text, so that batches need little padding."""
        if isinstance(self.inputs, np.ndarray):
            return rows
        return rows[np.argsort([len(self.inputs[row]) for row in rows], kind="stable")]


def tasks_with(folder: Path, split: str) -> dict[str, Path]:
    """Returns the tasks that have a file of this split, and the files, in name order.

    Raises: InputError where the folder is missing or a task has two files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one of <task>.{split}{SUFFIXES[0]} files")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        for suffix in SUFFIXES:
            ending = f".{split}{suffix}"
            if path.name.endswith(ending):
                task = path.name.removesuffix(ending)
                if task in found:
                    raise InputError(
                        f"{path}: the task '{task}' has the file {found[task].name} too; keep one"
                    )
                found[task] = path
    return found


def task_file(folder: Path, task: str, split: str) -> Path:
    """Returns a task's file of this split. Raises: InputError where it is missing."""
    files = tasks_with(folder, split)
    if task not in files:
        raise InputError(
            f"{folder}: has no {split} file of the task '{task}'; expected {task}.{split} with one of "
            f"{', '.join(SUFFIXES)} (it has: {', '.join(files) or 'none'})"
        )
    return files[task]


def read_examples(path: Path, labelled: bool) -> Examples:
    """Returns the examples of one file.

    Raises: InputError where it is empty, damaged, or lacks a field; labels are asked for by `labelled`.
    """
    try:
        examples = _read_arrays(path) if path.suffix == ".npz" else _read_records(path)
    except (ValueError, EOFError, zipfile.BadZipFile, gzip.BadGzipFile, KeyError) as reason:
        raise InputError(f"{path}: does not read as examples ({reason})") from reason
    if not len(examples):
        raise InputError(f"{path}: holds no examples; expected at least one")
    if labelled and examples.labels is None:
        raise InputError(f"{path}: its examples carry no labels; expected a field 'label' (or an array 'y')")
    return examples


def _read_arrays(path: Path) -> Examples:
    with np.load(path, allow_pickle=False) as arrays:
        if "x" not in arrays:
            raise ValueError(f"arrays {sorted(arrays)}, expected 'x' and 'y'")
        inputs = arrays["x"]
        labels = arrays["y"].astype(np.int64) if "y" in arrays else None
    if labels is not None and labels.shape != inputs.shape[:1]:
        raise ValueError(f"{len(inputs)} inputs and labels of shape {labels.shape}")
    return Examples(inputs, labels)


def _read_records(path: Path) -> Examples:
    records = _records(path)
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise ValueError(f"record {number} has no field 'text' with a text")
    texts = [record["text"] for record in records]
    if not all("label" in record for record in records):
        return Examples(texts, None)
    return Examples(texts, np.array([int(record["label"]) for record in records], np.int64))


def _records(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return _parquet_records(path)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _parquet_records(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as reason:
        raise InputError(
            f"{path}: reading .parquet takes pyarrow; pip install 'flexswitch[eval]'"
        ) from reason
    records: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return records
