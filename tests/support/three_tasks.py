"""A zoo of three small tasks, and ways to change it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.artifact_files import stored_form
from support.sparse_tensors import BASE, header, sparse_tensor, write_artifact
from support.zoo_files import writer_of

from flexswitch.codecs.errors import ArtifactError, FlexswitchError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.index_record import IndexRecord
from flexswitch.codecs.format.records import BaseIdentity, RawTensor
from flexswitch.codecs.format.zoo import TaskRecord, ZooRecord
from flexswitch.codecs.format.zoo_writer import ZooWriter, pack_task
from flexswitch.codecs.registry import stored_codec
from flexswitch.codecs.sparse import SparseTensor

TASKS = ("trec6", "cola", "SST-2")
OTHER_BASE = BaseIdentity(fingerprint="12" * 32)
EXTRA = RawTensor("F32", (2,), bytes(8))

Change = Callable[[dict[str, Any]], object]


def tensor(task: str) -> SparseTensor:
    return sparse_tensor((4, 9), [TASKS.index(task), 11, 30], [1, 0, 1], 1)


def artifact_file(folder: Path, task: str, base: BaseIdentity = BASE) -> Path:
    path = folder / f"{task}-made-elsewhere.fsw"
    tensors = {"weight": (tensor(task), 0.5, stored_codec("raw", {}))}
    return write_artifact(path, tensors, {"head": EXTRA}, header(task, base=base))


def packed_task(file: Path, writer: ZooWriter) -> TaskRecord:
    artifact = open_artifact(file)
    return pack_task(artifact, writer, (stored_form(artifact, name) for name in artifact.header.tensors))


def make_zoo(folder: Path) -> Path:
    """Returns a zoo of three tasks with a query index."""
    path = folder / "zoo"
    path.mkdir()
    writer = writer_of(path)
    tasks = {task: packed_task(artifact_file(folder, task), writer) for task in TASKS}
    index = writer.put("index", "exemplars", lambda file: file.write_bytes(b"features"))
    record = IndexRecord(**index._asdict(), features="pooled", metric="euclidean", per_task=100, seed=0)
    writer.commit(ZooRecord(base=BASE, adapter="hf-encoder", tasks=tasks, index=record))
    return path


def change_document(path: Path, change: Change) -> None:
    file = path / "zoo.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def message(action: Callable[[], object], error: type[FlexswitchError] = ArtifactError) -> str:
    with pytest.raises(error) as caught:
        action()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)
