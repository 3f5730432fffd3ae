"""Reads a task's examples: `DIR/<task>.<split>` as .jsonl.gz, .jsonl, .csv, .parquet or .npz."""

import csv
import gzip
import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError

SUFFIXES = (".jsonl.gz", ".jsonl", ".csv", ".parquet", ".npz")

Inputs = Sequence[str] | NDArray[Any]
Batch = dict[str, Tensor]  # the tensors that a model takes; the first dimension is the sample


@dataclass(frozen=True, eq=False)
class Examples:
    """The inputs of one task, and their labels if the file has them.

    inputs: a list of texts, or an array (example, ...) of images; labels: (example,) int64, or None.
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

    def first(self, count: int | None) -> "Examples":
        """Returns the first `count` examples, or all if it is None."""
        return self.take(np.arange(len(self))[:count])

    def order_by_length(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the permutation that sorts the rows by text length, so that batches need little padding."""
        if isinstance(self.inputs, np.ndarray):
            return np.arange(len(rows))
        return np.argsort([len(self.inputs[row]) for row in rows], kind="stable")

    def by_length(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows sorted by text length."""
        return rows[self.order_by_length(rows)]


def tasks_with(folder: Path, split: str) -> dict[str, Path]:
    """Returns task → file for the tasks that have a file of this split, sorted by name.

    Raises: InputError if the folder is missing, or a task has two files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a folder of <task>.{split}{SUFFIXES[0]} files")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        for suffix in SUFFIXES:
            ending = f".{split}{suffix}"
            if path.name.endswith(ending):
                task = path.name.removesuffix(ending)
                if task in found:
                    raise InputError(
                        f"{path}: the task '{task}' also has the file {found[task].name}; keep one of them"
                    )
                found[task] = path
    return found


def task_file(folder: Path, task: str, split: str) -> Path:
    """Returns a task's file of this split. Raises: InputError if it is missing."""
    files = tasks_with(folder, split)
    if task not in files:
        raise InputError(
            f"{folder}: has no {split} file of the task '{task}'; expected {task}.{split} with one of "
            f"{', '.join(SUFFIXES)} (it has: {', '.join(files) or 'none'})"
        )
    return files[task]


def read_examples(path: Path, labelled: bool) -> Examples:
    """Returns the examples of one file, with labels if `labelled` is true.

    Raises: InputError if the file is empty or damaged, or lacks a field.
    """
    try:
        examples = (_read_arrays if path.suffix == ".npz" else _read_records)(path, labelled)
    except Exception as reason:  # the readers raise many types on a damaged file
        if isinstance(reason, (InputError, MemoryError)):
            raise
        found = " ".join(str(reason).split())
        raise InputError(f"{path}: cannot be read as examples ({found})") from reason
    if not len(examples):
        raise InputError(f"{path}: has no examples; expected at least one")
    if labelled and examples.labels is None:
        raise InputError(f"{path}: its examples have no labels; expected a field 'label' (or an array 'y')")
    return examples


def _read_arrays(path: Path, labelled: bool) -> Examples:
    if not zipfile.is_zipfile(path):
        raise ValueError("not an archive of arrays as numpy.savez writes it")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if "x" not in arrays:
            raise ValueError(f"arrays {sorted(arrays)}, expected 'x' and 'y'")
        inputs = np.asarray(arrays["x"])
        labels = np.asarray(arrays["y"]) if labelled and "y" in arrays else None
    if not inputs.ndim:
        raise ValueError("'x' has no dimension of examples")
    if labels is None:
        return Examples(inputs, None)
    if labels.shape != inputs.shape[:1]:
        raise ValueError(f"{len(inputs)} inputs and labels of shape {labels.shape}")
    return Examples(inputs, np.array([_class_number(label) for label in labels.tolist()], np.int64))


def _read_records(path: Path, labelled: bool) -> Examples:
    records = _records(path)
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise ValueError(f"record {number} has no field 'text' that is a string")
    texts = [record["text"] for record in records]
    labels = [record.get("label") for record in records]
    if not labelled or None in labels:
        return Examples(texts, None)
    return Examples(texts, np.array([_class_number(label) for label in labels], np.int64))


def _class_number(label: Any) -> int:
    """Returns a label as an integer. Raises: ValueError, TypeError or OverflowError if it is not one."""
    number = int(label)
    if isinstance(label, float) and number != label:
        raise ValueError(f"label {label}, expected the number of a class")
    return number


def _records(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return _parquet_records(path)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [_json_line(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _json_line(number: int, line: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError as reason:
        raise ValueError(f"line {number}, column {reason.colno}: {reason.msg}") from reason
    return record


def _parquet_records(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as reason:
        raise InputError(
            f"{path}: reading .parquet needs pyarrow; pip install 'flexswitch[eval]'"
        ) from reason
    records: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return records


def draw(available: int, wanted: int, seed: int, task: str) -> NDArray[np.int64]:
    """Returns sorted rows drawn without repetition; they depend only on the arguments."""
    digest = hashlib.sha256(f"{seed}/{task}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    return np.sort(generator.permutation(available)[:wanted]).astype(np.int64)
