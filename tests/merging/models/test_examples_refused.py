"""A wrong file of examples is refused with a message of one line."""

import contextlib
import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support.checkpoints import message
from support.data_files import RECORDS, WRITERS, jsonl, npz, parquet, write

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.examples import first, read_examples

UNLABELLED = "its examples have no labels; expected a field 'label' (or an array 'y')"
UNPACKED = (
    "unpacks to more than 268,435,456 bytes, over 100 times its size, each record counted as 200 more; if this is "
    "right, do not compress it"
)
UNTEXTED = "has no field 'text' that is a string, nor 'messages', 'prompt' and 'completion', or 'source' and 'target'"


def refused(path, labelled=True):
    """Returns the error message of a file, without its path."""
    found = message(InputError, lambda: read_examples(path, labelled))
    assert found.startswith(f"{path}: ")
    return found.removeprefix(f"{path}: ")


def damaged(path, labelled=True):
    """Returns the reason in the error message of an unreadable file."""
    found = refused(path, labelled)
    assert found.startswith("cannot be read as examples (")
    return found.removeprefix("cannot be read as examples (").removesuffix(")")


@pytest.mark.parametrize("suffix", WRITERS)
def test_missing_labels_are_reported_if_they_are_needed(tmp_path, suffix):
    path = write(tmp_path, f"birds.test{suffix}", WRITERS[suffix]([{"text": "a"}, {"text": "b"}]))
    assert refused(path) == UNLABELLED
    assert list(read_examples(path, labelled=False).inputs) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("birds.test.jsonl", jsonl([{"text": "a", "label": 1}, {"text": "b"}])),
        ("birds.test.jsonl", jsonl([{"text": "a", "label": 1}, {"text": "b", "label": None}])),
        ("birds.test.csv", b"text,label\na,1\nb\n"),
        ("birds.test.parquet", parquet([{"text": "a", "label": 1}, {"text": "b", "label": None}])),
        ("birds.test.npz", npz(x=np.zeros((2, 3)))),
    ],
    ids=["left out", "null", "csv cell", "parquet null", "no y"],
)
def test_one_missing_label_is_reported(tmp_path, name, data):
    path = write(tmp_path, name, data)
    assert refused(path) == UNLABELLED
    assert len(read_examples(path, labelled=False)) == 2


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_missing_text_is_reported(tmp_path, suffix):
    records = [{"sentence": "a", "label": 1}]
    path = write(tmp_path, f"birds.test{suffix}", WRITERS[suffix](records))
    place = "line 1" if ".jsonl" in suffix else "record 1"
    assert damaged(path) == f"{place} {UNTEXTED}"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("birds.test.jsonl", jsonl([{"text": "a"}, {"text": None}])),
        ("birds.test.jsonl", jsonl([{"text": "a"}, {"text": 3}])),
        ("birds.test.jsonl", jsonl([{"text": "a"}, ["text"]])),
        ("birds.test.jsonl", jsonl([{"text": "a"}, None])),
        ("birds.test.csv", b"label,text\n1,a\n1\n"),
        ("birds.test.parquet", parquet([{"text": "a"}, {"text": None}])),
    ],
    ids=["null", "number", "list", "no object", "csv cell", "parquet null"],
)
def test_one_missing_text_is_reported(tmp_path, name, data):
    place = "line 2" if ".jsonl" in name else "record 2"
    assert damaged(write(tmp_path, name, data), labelled=False) == f"{place} {UNTEXTED}"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("birds.test.jsonl", b""),
        ("birds.test.jsonl", b"\n \n"),
        ("birds.test.jsonl.gz", b""),
        ("birds.test.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("birds.test.csv", b""),
        ("birds.test.csv", b"text,label\n"),
        ("birds.test.parquet", parquet([], pyarrow.schema({"text": pyarrow.string()}))),
        ("birds.test.npz", npz(x=np.zeros((0, 3)), y=np.zeros(0))),
    ],
)
def test_a_file_without_examples_is_refused(tmp_path, name, data):
    assert refused(write(tmp_path, name, data)) == "has no examples; expected at least one"


def test_a_line_that_is_not_json_is_reported_with_its_number(tmp_path):
    lines = b'{"text": "a", "label": 1}\n\n{"text": b, "label": 1}\n'
    for name, data in (("birds.test.jsonl", lines), ("birds.test.jsonl.gz", gzip.compress(lines, mtime=0))):
        assert damaged(write(tmp_path, name, data)) == "line 3, column 10: Expecting value"


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_file_of_blank_lines_is_refused_and_some_are_skipped(tmp_path, suffix):
    pack = (lambda data: gzip.compress(data, mtime=0)) if suffix.endswith(".gz") else bytes
    some = b"\n" * 1000 + b'{"text": "a"}\n \n\n' * 20
    path = write(tmp_path, f"birds.test{suffix}", pack(some))
    assert len(read_examples(path, labelled=False)) == 20
    path = write(tmp_path, f"birds.test{suffix}", pack(some + b"\n" * 10_000))
    assert damaged(path, labelled=False) == "1,041 of its first 1,061 lines are blank; remove them"


def test_very_deep_json_is_refused(tmp_path):
    path = write(tmp_path, "birds.test.jsonl", b"[" * 100_000)
    assert damaged(path) == "line 1: its lists and objects are nested too deeply"


def test_half_of_a_character_is_refused(tmp_path):
    path = write(tmp_path, "birds.test.jsonl", b'{"text": "a"}\n{"text": "a\\ud800"}')
    assert damaged(path, labelled=False) == "line 2: its text holds \\ud800, which is half of a character"
    path = write(tmp_path, "birds.test.jsonl", b'{"text": "\\ud83d\\ude00"}')
    assert read_examples(path, labelled=False).inputs == ["\N{GRINNING FACE}"]


def test_a_number_of_a_million_digits_is_infinity_as_a_label_and_ignored_elsewhere(tmp_path):
    digits = b"9" * 1_000_000
    path = write(tmp_path, "birds.test.jsonl", b'{"text": "a", "label": -%b}' % digits)
    assert read_examples(path, labelled=True).labels == [float("inf")]
    path = write(tmp_path, "birds.test.jsonl", b'{"text": "a", "label": 1, "id": %b}' % digits)
    assert read_examples(path, labelled=True).labels == [1]


@pytest.mark.parametrize(
    ("name", "start"),
    [("birds.test.jsonl", b'{"text": "'), ("birds.test.jsonl.gz", b""), ("birds.test.csv", b"text\n")],
)
def test_a_line_that_is_too_long_is_refused(tmp_path, name, start):
    data = start + b"a" * 5_000_000
    path = write(tmp_path, name, gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    number = 2 if name.endswith("csv") else 1
    assert damaged(path) == f"line {number} has more than 4,194,304 characters"


def bomb(suffix):
    """Returns a small file that unpacks to more than 256 MiB."""
    rows = 30_000
    if suffix == ".jsonl.gz":
        line = b'{"text": "%b"}\n' % (b"a" * 1_000_000)
        return gzip.compress(line * 10, mtime=0) * 28
    if suffix == ".parquet":
        table = pyarrow.table(
            {"text": pyarrow.array(["a" * 10_000]).take(pyarrow.array(np.zeros(rows, np.int32)))}
        )
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file)
        return file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "|u1", "fortran_order": False, "shape": (280 << 20,)}
        )
        for _ in range(280):
            member.write(bytes(1 << 20))
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet", ".npz"])
def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path, suffix):
    path = write(tmp_path, f"birds.test{suffix}", bomb(suffix))
    assert path.stat().st_size < 2_700_000
    for choose in (
        (None,) if suffix == ".parquet" else (None, first(3))
    ):  # it tells its rows without unpacking
        found = message(InputError, lambda: read_examples(path, False, choose))  # noqa: B023
        assert found == f"{path}: cannot be read as examples ({UNPACKED})"


MANY = 1_350_000  # empty records


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".jsonl.gz", lambda: gzip.compress(b'{"text":""}\n' * MANY, mtime=0)),
        (".parquet", lambda: parquet_of_nothing(MANY)),
        (".npz", lambda: npz(x=np.empty((10**8, 0), np.uint8))),
        (".npz", lambda: npz(x=np.zeros(MANY, np.uint8))),
    ],
)
def test_a_small_file_of_very_many_examples_is_refused(tmp_path, suffix, data):
    path = write(tmp_path, f"birds.test{suffix}", data())
    assert path.stat().st_size < 100_000
    assert message(InputError, lambda: read_examples(path, False, first(3))).endswith(f"({UNPACKED})")


def parquet_of_nothing(rows):
    data = io.BytesIO()
    texts = pyarrow.array([""], pyarrow.string()).take(pyarrow.array(np.zeros(rows, np.int32)))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), data)
    return data.getvalue()


def test_an_array_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open("x.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(24))
    assert damaged(write(tmp_path, "birds.test.npz", file.getvalue())) == (
        "'x' of shape (1099511627776, 3) needs 13,194,139,533,312 bytes, and 24 follow"
    )


@pytest.mark.parametrize("name", ["birds.test.jsonl", "birds.test.csv"])
def test_a_text_in_another_encoding_is_refused(tmp_path, name):
    path = write(tmp_path, name, "text,label\nü,1\n".encode("latin-1"))
    assert damaged(path) == "'utf-8' codec can't decode byte 0xfc in position 11: invalid start byte"


def test_a_very_long_field_is_refused(tmp_path):
    path = write(tmp_path, "birds.test.csv", b'text,label\n"' + b"a" * 200_000)
    assert damaged(path) == "field larger than field limit (131072)"


def test_a_csv_with_a_column_twice_is_refused(tmp_path):
    path = write(tmp_path, "birds.test.csv", b"text,label,text\na,1,b\n")
    assert damaged(path) == "its header has a column twice; name each column once"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (b'a,1\n"b,0\nc,1\n', "unexpected end of data"),
        (b"a,1\nb, and c,0\n", "record 2 has more cells than the header; quote texts with commas"),
    ],
    ids=["unclosed quote", "unquoted comma"],
)
def test_a_csv_that_would_be_read_otherwise_than_meant_is_refused(tmp_path, rows, reason):
    path = write(tmp_path, "birds.test.csv", b"text,label\n" + rows)
    assert damaged(path) == reason


def test_a_truncated_gzip_is_refused(tmp_path):
    data = gzip.compress(jsonl(RECORDS * 9), mtime=0)
    for length in (len(data) - 1, len(data) - 9, len(data) // 2, 15):
        path = write(tmp_path, "birds.test.jsonl.gz", data[:length])
        assert damaged(path) == "Compressed file ended before the end-of-stream marker was reached"
    assert damaged(write(tmp_path, "birds.test.jsonl.gz", jsonl(RECORDS))) == "Not a gzipped file (b'{\"')"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".npz", ".parquet"])
def test_no_flipped_bit_escapes_as_another_error(tmp_path, suffix):
    whole = (
        npz(x=np.random.default_rng(0).normal(size=(3, 4)), y=np.arange(3))
        if suffix == ".npz"
        else WRITERS[suffix](RECORDS)
    )
    path = tmp_path / f"birds.test{suffix}"
    refusals = 0
    for offset in range(0, len(whole), 3):
        data = bytearray(whole)
        data[offset] ^= 1 << (offset % 8)
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            read_examples(path, labelled=True)
            continue
        refused(path)
        refusals += 1
    assert refusals > len(whole) // 3 * 0.3


@pytest.mark.parametrize("size", [0, 3, 100])
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_file_of_random_bytes_is_refused(tmp_path, suffix, size):
    assert damaged(write(tmp_path, f"birds.test{suffix}", b"j" * size))


class Pickled:
    """Writes a file if it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["x", "y"])
def test_a_pickled_object_in_an_array_file_is_never_loaded(tmp_path, name):
    trace = tmp_path / "trace"
    arrays = {"x": np.zeros((1, 3)), "y": np.zeros(1)} | {name: np.array([Pickled(trace)], object)}
    path = write(tmp_path, "birds.test.npz", npz(**arrays))
    assert damaged(path) == f"'{name}' has the type object, expected numbers"
    assert not trace.exists()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": np.zeros(3), "y": np.zeros(3)}, "arrays ['images', 'y'], expected 'x' and 'y'"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2)}, "3 inputs and labels of shape (2,)"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((2, 3))}, "3 inputs and labels of shape (2, 3)"),
        ({"x": np.zeros((3, 2)), "y": np.int64(1)}, "3 inputs and labels of shape ()"),
        ({"x": np.float32(1), "y": np.zeros(1)}, "'x' has no dimension of examples"),
        ({"x": np.array(["a", "b"])}, "'x' has the type <U1, expected numbers"),
    ],
)
def test_arrays_of_other_names_or_shapes_are_refused(tmp_path, arrays, reason):
    assert damaged(write(tmp_path, "birds.test.npz", npz(**arrays))) == reason


def test_other_archives_and_single_arrays_are_refused(tmp_path):
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    path = write(tmp_path, "birds.test.npz", single.getvalue())
    assert damaged(path) == "not an archive of arrays as numpy.savez writes it"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"not an array")
    assert damaged(path).startswith("the magic string is not correct")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = write(tmp_path, "birds.test.parquet", parquet(RECORDS))
    assert refused(path) == "reading .parquet needs pyarrow; pip install 'flexswitch[eval]'"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused_with_their_row(tmp_path: Path, value: float) -> None:
    inputs = np.ones((4, 2, 3), np.float32)
    inputs[2, 1, 0] = value
    path = write(tmp_path, "birds.test.npz", npz(x=inputs, y=np.arange(4)))
    with pytest.raises(InputError, match=r"row 2 of 'x' holds NaN or infinite numbers$"):
        read_examples(path, labelled=True)
    assert len(read_examples(path, labelled=True, choose=lambda count: np.arange(2))) == 2
