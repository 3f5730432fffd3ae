"""Small checkpoints, in files and in memory, and what tests do with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flexswitch.codecs.errors import FlexswitchError
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.records import MethodRecord
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.pairing import Selection
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.plan import Job
from flexswitch.merging.task_vectors import task_vector
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.task_vector import TaskVector
from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile, write_task_vector

State = dict[str, Tensor]


class MemoryCheckpoint:
    """A checkpoint that consists of tensors in memory."""

    def __init__(self, state: State, source: str = "memory") -> None:
        self.source = source
        self.files: list[Path] = []
        self.directory: Path | None = None
        self.hub_id: str | None = None
        self.notes: list[str] = []
        self.aliases: dict[str, str] = {}
        self._state = state
        self.tensors = {
            name: TensorInfo(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
            for name, tensor in sorted(state.items())
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._state[name].reshape(-1)[start:stop].clone()

    def read_ahead(self, name: str) -> None:
        pass


def message(kind: type[FlexswitchError], action: Callable[[], object]) -> str:
    """Returns the message of the error that an action raises: one line, of exactly that class."""
    with pytest.raises(FlexswitchError) as caught:
        action()
    assert type(caught.value) is kind
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def save_model(
    folder: Path,
    state: State,
    config: dict[str, Any] | None = None,
    kind: str = "safetensors",
    shards: int = 1,
) -> Path:
    """Writes a model directory as transformers does, with the tensors distributed over the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    files = [f"{stem}-{number + 1:05d}-of-{shards:05d}.{ending}" for number in range(shards)]
    if shards == 1:
        files = [f"{stem}.{ending}"]
    weight_map = {name: files[place % shards] for place, name in enumerate(state)}
    for file in files:
        part = {name: tensor for name, tensor in state.items() if weight_map[name] == file}
        if kind == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def file_pair(folder: Path, base: State, finetuned: State, **selection: Any) -> CheckpointPair:
    """Returns the task vector between base.safetensors and finetuned.safetensors, which it writes."""
    save_file(base, folder / "base.safetensors")
    save_file(finetuned, folder / "finetuned.safetensors")
    opened = [open_checkpoint(str(folder / f"{stem}.safetensors")) for stem in ("base", "finetuned")]
    return CheckpointPair(HashingCheckpoint(opened[0]), opened[1], Selection(**selection))


def memory_pair(base: State, finetuned: State, **selection: Any) -> CheckpointPair:
    """Returns the task vector between two checkpoints in memory."""
    opened = MemoryCheckpoint(base, "base"), MemoryCheckpoint(finetuned, "finetuned")
    return CheckpointPair(*opened, Selection(**selection))


def extracted(vector: CheckpointPair | LoraVector, path: Path, dtype: Any = "float32") -> TaskVectorFile:
    """Returns a task vector's file, which it writes."""
    write_task_vector(vector, path, "task", dtype, overwrite=True)
    return TaskVectorFile(path)


def job(name: str = "task", jobs: int = 1) -> Job:
    """Returns a job without guidance, for a task of that name."""
    return Job(name, MethodRecord(name="any"), jobs)


def law_settings(method: str, **settings: Any) -> dict[str, Any]:
    """Returns a method's settings, those without training if its default is to train."""
    untrained = {"objective": "none", "target_size": "100KB"} if method == "flexswitch" else {}
    return untrained | settings


def compressed(vector: TaskVector, path: Path, method: str = "t-switch", **settings: Any) -> Artifact:
    """Returns a task vector's artifact, which it writes."""
    given = law_settings(method, **settings)
    compress(vector, path, "task", method, given, overwrite=True)
    return open_artifact(path)


def bits(tensor: Tensor) -> list[int]:
    """Returns a tensor's bytes: NaN equals itself there, and 0 is not -0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def assert_same_state(found: Any, expected: State) -> None:
    """Checks names, dtypes, shapes and every bit."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(found[name]) == bits(tensor), name


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Flips one bit of a file; a negative offset counts from its end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def use_small_blocks(monkeypatch: pytest.MonkeyPatch, entries: int = 16) -> None:
    """Makes all task vectors be read in small blocks."""
    monkeypatch.setattr(task_vector, "READ_ENTRIES", entries)
