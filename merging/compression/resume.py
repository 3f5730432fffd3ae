"""The side file of a compression that can be resumed: its finished tensors, each with a checksum.

The first line is JSON and identifies the run. Each tensor follows as a line of JSON and the bytes of its
blocks. Anything after the last complete tensor is discarded.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, FiniteFloat, ValidationError

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.artifact_writer import PackedTensor
from flexswitch.codecs.format.exact_forms import PackedExact
from flexswitch.codecs.format.fields import Blake3, Count, Crc32
from flexswitch.codecs.format.quality_records import TrainingRecord
from flexswitch.codecs.format.records import ExactRecord, MethodRecord, ModelRecord, TensorRecord, crc32
from flexswitch.codecs.format.strict import Strict
from flexswitch.merging.compression.delta import Squares
from flexswitch.merging.compression.plan import Job
from flexswitch.merging.task_vectors.task_vector import TaskVector

_SUFFIX = ".resume"

Packed = PackedTensor | PackedExact


class Finished(NamedTuple):
    """A tensor as it is stored, None where it has no kept entries, and how far that is from its delta."""

    packed: Packed | None
    squares: Squares


class _Run(Strict):
    """Identifies the run that a side file belongs to; any difference would change the artifact."""

    format: Literal["flexswitch-resume"] = "flexswitch-resume"
    version: Literal[1] = 1
    task: str
    method: MethodRecord
    model: ModelRecord
    parameters: Count
    training: TrainingRecord | None
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    has_base: bool  # at hand, which a method may use
    inputs: list[tuple[int, int]]  # size and modification time of each file


class _Entry(Strict):
    """One finished tensor. digest: BLAKE3 of the base's tensor, None if it is not known."""

    name: str
    digest: Blake3 | None
    record: TensorRecord | ExactRecord | None
    size: Count
    crc32: Crc32
    squares: tuple[FiniteFloat, FiniteFloat]


class _Line(Strict):
    entry: _Entry
    crc32: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


class SideFile:
    """A side file, open inside its `with` block; it stays on disk until `remove`."""

    def __init__(self, output: Path, vector: TaskVector, job: Job, training: TrainingRecord | None) -> None:
        self.path = side_file(output)
        self._base_digests = vector.hints.base_digests
        tensors = {name: (info.dtype, info.shape) for name, info in vector.tensors.items()}
        run = _Run(
            task=job.task,
            method=job.method,
            model=vector.model,
            parameters=vector.parameters,
            training=training,
            tensors=tensors,
            has_base=job.training.base is not None,
            inputs=vector.hints.file_stamps(),
        )
        self._run = run.model_dump_json().encode() + b"\n"
        self._places: dict[str, tuple[_Entry, int]] = {}

    def __enter__(self) -> Self:
        """Opens the file and finds its complete tensors. Raises: InputError if it belongs to another run."""
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise InputError(
                f"{self.path}: is a link or no file, and finished tensors go there; move it away"
            )
        existed = self.path.exists() and self.path.stat().st_size > 0
        self._file = self.path.open("r+b" if existed else "w+b")
        try:
            if existed:
                self._read()
            else:
                self._file.write(self._run)
                self._file.flush()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def finished(self) -> frozenset[str]:
        """Returns the names of the tensors that the file held when it was opened."""
        return frozenset(self._places)

    def read(self, name: str) -> Finished:
        """Returns a finished tensor."""
        entry, place = self._places[name]
        squares = Squares(*entry.squares)
        if entry.record is None:
            return Finished(None, squares)
        self._file.seek(place)
        data = self._file.read(entry.size)
        self._file.seek(0, os.SEEK_END)
        if isinstance(entry.record, TensorRecord):
            return Finished(PackedTensor(entry.record, data), squares)
        return Finished(PackedExact(entry.record, data), squares)

    def add(self, name: str, finished: Finished) -> None:
        """Appends a finished tensor."""
        packed = finished.packed
        data = packed.data if packed else b""
        entry = _Entry(
            name=name,
            digest=self._base_digests.get(name),
            record=packed.record if packed else None,
            size=len(data),
            crc32=crc32(data),
            squares=finished.squares,
        )
        line = _Line(entry=entry, crc32=crc32(entry.model_dump_json().encode()))
        self._file.write(line.model_dump_json().encode() + b"\n" + data)
        self._file.flush()

    def remove(self) -> None:
        """Deletes the file, once the artifact is complete."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        if self._file.readline() != self._run:
            raise InputError(
                f"{self.path}: belongs to a compression of other checkpoints or with other settings; "
                "repeat that one, or delete the file"
            )
        whole = self._file.tell()
        while (entry := _whole_entry(self._file.readline())) is not None:
            place = self._file.tell()
            data = self._file.read(entry.size)
            if len(data) != entry.size or crc32(data) != entry.crc32:
                break
            self._places[entry.name] = (entry, place)
            if entry.digest is not None:
                self._base_digests[entry.name] = entry.digest
            whole = self._file.tell()
        self._file.seek(whole)
        self._file.truncate()


def side_file(output: Path) -> Path:
    """Returns the path of an output's side file."""
    return output.with_name(output.name + _SUFFIX)


def _whole_entry(line: bytes) -> _Entry | None:
    """Returns a line's entry, None if the line is incomplete or damaged."""
    try:
        parsed = _Line.model_validate_json(line)
    except ValidationError:
        return None
    return parsed.entry if crc32(parsed.entry.model_dump_json().encode()) == parsed.crc32 else None
