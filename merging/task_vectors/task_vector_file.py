"""The `*.tv.safetensors` file: a dense task vector, written by `extract`.

Plain safetensors: each tensor's delta under the base's name, the task's own tensors under `extra/`, and
under `exact/<name>/positions` and `exact/<name>/values` the few weights that float32 rounding makes
base + delta miss, so that the fine-tuned weights come back bit for bit in float32.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.codecs.errors import ArtifactError, InputError, not_found
from flexswitch.codecs.format.atomic import atomic_file, check_space
from flexswitch.codecs.format.documents import parse_document
from flexswitch.codecs.format.fields import Count, Crc32, RelativeError, TaskName
from flexswitch.codecs.format.records import (
    CHECKSUM_KEY,
    METADATA_KEY,
    BaseIdentity,
    ModelRecord,
    RawTensor,
    crc32,
)
from flexswitch.codecs.format.safetensors_file import (
    DTYPE_BYTES,
    SafetensorsWriter,
    header_bytes,
)
from flexswitch.codecs.format.strict import Strict
from flexswitch.codecs.format.tensor_names import check_stored_names, is_side_file
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.sums import square_sum
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.safetensors_checkpoint import SafetensorsCheckpoint
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.raw_tensors import raw_tensor
from flexswitch.merging.task_vectors.reading_hints import ReadingHints
from flexswitch.merging.task_vectors.relative_change import relative_change
from flexswitch.merging.task_vectors.side_files import read_files, stored_extras
from flexswitch.merging.task_vectors.task_vector import TaskVector, block_ranges

EXTRA_PREFIX, EXACT_PREFIX = "extra/", "exact/"
DeltaDtype = Literal["float32", "bfloat16"]
_STORED_DTYPES = {"float32": "F32", "bfloat16": "BF16"}
# These reserve space in the header for numbers and an identity that are not known yet.
_WIDEST_COUNT = 10**15
_WIDEST_CHANGE = 1.234e-123
_WIDEST_BASE = BaseIdentity(fingerprint="0" * 64, id=f"{'0' * 96}/{'0' * 96}@{'0' * 62}")


class TaskVectorHeader(Strict):
    """The JSON document of a task vector file.

    relative_change: ‖τ‖ / ‖θ‖ over the tensors that changed. dtypes are the fine-tuned checkpoint's, by base
    name; crc32 has one entry a stored tensor.
    """

    format: Literal["flexswitch-task-vector"] = "flexswitch-task-vector"
    version: Literal[1] = 1
    name: TaskName
    base: BaseIdentity
    model: ModelRecord
    parameters: Count
    relative_change: RelativeError
    dtypes: dict[str, str]
    crc32: dict[str, Crc32]


class TaskVectorFile:
    """An open task vector file."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(not_found(path, "a task vector that `flexswitch extract` wrote"))
        self._file = SafetensorsCheckpoint(str(path), [path], None, ArtifactError)
        metadata = self._file.metadata
        if METADATA_KEY not in metadata:
            raise InputError(f"{path}: not a task vector: its metadata lacks the key '{METADATA_KEY}'")
        self.header = parse_document(TaskVectorHeader, path, metadata[METADATA_KEY], metadata)
        self.source = str(path)
        self.path = path
        self.model = self.header.model
        self.parameters = self.header.parameters
        self.hints = ReadingHints((path,), read_ahead=self._file.read_ahead)
        tensors = self._file.tensors
        if not set(self.header.dtypes) <= set(tensors):
            odd = sorted(set(self.header.dtypes) - set(tensors))[0]
            raise ArtifactError(f"{path}: tensor '{odd}' is named in its document but missing in the file")
        if set(self.header.crc32) != set(tensors):
            odd = sorted(set(self.header.crc32) ^ set(tensors))[0]
            raise ArtifactError(f"{path}: tensor '{odd}' is named in only one of its two headers")
        self.tensors = {
            name: TensorInfo(dtype, tensors[name].shape) for name, dtype in sorted(self.header.dtypes.items())
        }
        self.extras = {
            name.removeprefix(EXTRA_PREFIX): info
            for name, info in tensors.items()
            if name.startswith(EXTRA_PREFIX) and not is_side_file(name.removeprefix(EXTRA_PREFIX))
        }
        check_stored_names(path, self.tensors, self.extras, self.model, ArtifactError)

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files beside the weights. Raises: ArtifactError if they are damaged or may not be written."""
        stored = {name.removeprefix(EXTRA_PREFIX): info for name, info in self._file.tensors.items()}
        sizes = {name: info.entries for name, info in stored.items() if is_side_file(name)}
        return read_files(self.source, sizes, self.extra)

    def identity(self) -> BaseIdentity:
        """Returns the identity of the base it was made from."""
        return self.header.base

    def blocks(self, tensor: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields a tensor's delta. Raises: ArtifactError if it is not finite or damaged."""
        checksum = 0
        for start, stop in block_ranges(self.tensors[tensor].entries, size):
            stored = self._file.read(tensor, start, stop)
            checksum = zlib.crc32(stored.view(torch.uint8).numpy().data, checksum)
            block = stored.to(torch.float32)
            if not torch.isfinite(block).all():
                raise ArtifactError(f"{self.path}: tensor '{tensor}' holds NaN or infinite values")
            yield block.numpy()
        self._check(tensor, tensor, f"{checksum:08x}")

    def exact(self, tensor: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns positions and float32 values of the weights that base + delta would miss.

        Raises: ArtifactError where they are damaged.
        """
        if _exact_names(tensor)[0] not in self._file.tensors:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        positions, values = (raw_tensor(self._file, name) for name in _exact_names(tensor))
        for name, raw in zip(_exact_names(tensor), (positions, values), strict=True):
            self._check(tensor, name, crc32(raw.data))
        return np.frombuffer(positions.data, "<i8"), np.frombuffer(values.data, "<f4")

    def extra(self, name: str) -> RawTensor:
        """Returns one of the extras. Raises: ArtifactError if it is damaged."""
        raw = raw_tensor(self._file, EXTRA_PREFIX + name)
        self._check(name, EXTRA_PREFIX + name, crc32(raw.data))
        return raw

    def _check(self, tensor: str, stored_name: str, found: str) -> None:
        expected = self.header.crc32.get(stored_name)
        if found != expected:
            raise ArtifactError(
                f"{self.path}: tensor '{tensor}' is damaged: checksum {found} of '{stored_name}', "
                f"expected {expected}; restore the file from a copy, or extract it again"
            )


def write_task_vector(
    vector: CheckpointPair | LoraVector,
    path: Path,
    name: str,
    dtype: DeltaDtype,
    overwrite: bool,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> TaskVectorHeader:
    """Writes a task vector's file tensor by tensor; `on_tensor` is called with each name. Returns its header.

    Raises: InputError if the output may not be written or the disk is too small.
    """
    stored = _STORED_DTYPES[dtype]
    dense_bytes = sum(info.entries for info in vector.tensors.values()) * DTYPE_BYTES[stored]
    extra_bytes = sum(info.entries * DTYPE_BYTES[info.dtype] for info in vector.extras.values())
    extra_bytes += sum(map(len, vector.files.values()))
    with atomic_file(path, overwrite) as partial:
        check_space(path, dense_bytes + extra_bytes)
        header = TaskVectorHeader(
            name=name,
            base=_WIDEST_BASE,
            model=vector.model,
            parameters=vector.parameters,
            relative_change=_WIDEST_CHANGE,
            dtypes={tensor: info.dtype for tensor, info in vector.tensors.items()},
            crc32={},
        )
        reserved = _reserve(vector, stored, header)
        with SafetensorsWriter(partial, {}, reserved, has_checksums=True) as writer:
            change = relative_change(vector.base, _add_tensors(writer, vector, dtype, on_tensor))
            # Last, because reading the tensors has hashed most of the base.
            found = {"base": vector.identity(), "relative_change": change, "crc32": writer.checksums}
            header = header.model_copy(update=found)
            writer.metadata = _metadata(header)
    return header


def _add_tensors(
    writer: SafetensorsWriter, vector: TaskVector, dtype: DeltaDtype, on_tensor: Callable[[str], None]
) -> dict[str, float]:
    """Returns Σ τ² of each tensor."""
    squares = {}
    for extra_name, extra in stored_extras(vector):
        writer.add(EXTRA_PREFIX + extra_name, extra.dtype, extra.shape, [extra.data])
    for tensor, info in vector.tensors.items():
        on_tensor(tensor)
        terms: list[float] = []
        chunks = (_to_bytes(block, dtype) for block in _tallied(vector.blocks(tensor), terms))
        writer.add(tensor, _STORED_DTYPES[dtype], info.shape, chunks)
        squares[tensor] = math.fsum(terms)
    for tensor in vector.tensors if dtype == "float32" else ():
        positions, values = vector.exact(tensor)
        if len(positions):
            position_name, value_name = _exact_names(tensor)
            writer.add(position_name, "I64", positions.shape, [positions.tobytes()])
            writer.add(value_name, "F32", values.shape, [values.tobytes()])
    return squares


def _metadata(header: TaskVectorHeader) -> dict[str, str]:
    text = header.model_dump_json()
    return {METADATA_KEY: text, CHECKSUM_KEY: crc32(text.encode())}


def _reserve(vector: TaskVector, stored: str, header: TaskVectorHeader) -> int:
    """Returns bytes enough for any header this vector can get, from its names alone."""
    widest = [_WIDEST_COUNT, _WIDEST_COUNT]
    entries: dict[str, dict[str, object]] = {}
    files = {name: TensorInfo("U8", (len(data),)) for name, data in vector.files.items()}
    for name, info in {**vector.extras, **files}.items():
        entries[EXTRA_PREFIX + name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": widest}
    for name, info in vector.tensors.items():
        entries[name] = {"dtype": stored, "shape": info.shape, "data_offsets": widest}
        for part in _exact_names(name):
            entries[part] = {"dtype": "I64", "shape": [_WIDEST_COUNT], "data_offsets": widest}
    checksums = dict.fromkeys(entries, "0" * 8)
    return len(header_bytes(entries, _metadata(header.model_copy(update={"crc32": checksums}))))


def _exact_names(tensor: str) -> tuple[str, str]:
    return f"{EXACT_PREFIX}{tensor}/positions", f"{EXACT_PREFIX}{tensor}/values"


def _tallied(blocks: Iterator[FloatArray], squares: list[float]) -> Iterator[FloatArray]:
    """Yields blocks as they are, and appends the Σ τ² of each to `squares`."""
    for block in blocks:
        squares.append(square_sum(block))
        yield block


def _to_bytes(block: FloatArray, dtype: DeltaDtype) -> bytes:
    if dtype == "float32":
        return block.tobytes()
    return torch.from_numpy(block).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
