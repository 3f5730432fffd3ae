"""FORMAT.md and the golden artifact: what is described is what is written and read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from golden.write import GOLDEN_TENSORS, write_golden
from pydantic import BaseModel
from safetensors import safe_open
from support.artifact_files import (
    EXTRAS,
    GOLDEN,
    HEADER,
    ROWS,
    TENSORS,
    assert_holds,
    read_table,
    stored_form,
)
from support.sparse_tensors import BASE, header, write_artifact

import flexswitch.codecs.format.container
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.index_record import IndexRecord, RoutingAccuracy
from flexswitch.codecs.format.quality_records import BudgetRecord, QualityRecord, TrainingRecord
from flexswitch.codecs.format.records import (
    METADATA_KEY,
    ArtifactDocument,
    ArtifactHeader,
    BaseIdentity,
    BlockRecord,
    ExactBlock,
    ExactRecord,
    ExtraRecord,
    FormRecord,
    MethodRecord,
    ModelRecord,
    TableRecord,
    TensorRecord,
    TensorTable,
    crc32,
)
from flexswitch.codecs.format.zoo import TaskRecord, ZooRecord
from flexswitch.codecs.registry import stored_codec
from flexswitch.merging.routing.query_set import QuerySetHeader
from flexswitch.merging.task_vectors.task_vector_file import TaskVectorHeader

FORMAT = Path(flexswitch.codecs.format.container.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small artifact with a tensor of each sort."""
    return write_artifact(tmp_path / "sst2.fsw", ROWS, EXTRAS, HEADER)


def test_the_golden_artifact_is_read(path: Path) -> None:
    artifact = open_artifact(GOLDEN / "artifact.fsw")
    assert_holds(artifact, GOLDEN_TENSORS)
    again = open_artifact(write_golden(path))
    assert artifact.header == again.header
    assert len(artifact.header.tensors["long"].blocks) == 2
    for name in GOLDEN_TENSORS:
        assert stored_form(artifact, name) == stored_form(again, name)


def worked_example(kind: str) -> dict[str, Any]:
    found = re.search(r"```json\n(\{\"" + kind + r"\": *.*?)```", FORMAT, re.DOTALL)
    assert found is not None
    document: dict[str, Any] = json.loads(found.group(1))
    return document


def test_the_worked_example_has_the_documents_that_are_written(tmp_path: Path) -> None:
    wanted, table = worked_example("format"), worked_example("tensors")
    written = header(
        base=BaseIdentity.model_validate(wanted["base"]),
        method=MethodRecord.model_validate(wanted["method"]),
        parameters=wanted["parameters"],
    )
    sparse, scale, _ = TENSORS["encoder.weight"]
    block = TensorTable.model_validate(table).tensors["encoder.weight"].blocks[0]
    codec = stored_codec(block.codec, block.settings)
    path = write_artifact(tmp_path / "sst2.fsw", {"encoder.weight": (sparse, scale, codec)}, {}, written)
    assert json.dumps(read_table(path)) == json.dumps(table)
    with safe_open(path, framework="np") as opened:
        found = json.loads(opened.metadata()[METADATA_KEY])
    # The frame of the table, and so its size and checksum, may differ between versions of zstandard.
    assert found.pop("table").keys() == wanted.pop("table").keys()
    assert json.dumps(found) == json.dumps(wanted)


def test_the_worked_example_has_the_checksum_of_its_document() -> None:
    text = json.dumps(worked_example("format"), separators=(",", ":"))
    assert f"`{crc32(text.encode())}`" in FORMAT


@pytest.mark.parametrize(
    "record",
    [
        ArtifactDocument, TensorTable, TableRecord, BlockRecord, ExtraRecord, ArtifactHeader, BaseIdentity,
        ModelRecord, MethodRecord, TensorRecord, ExactRecord, ExactBlock, ZooRecord, TaskRecord, IndexRecord,
        TaskVectorHeader, QuerySetHeader, FormRecord, TrainingRecord, QualityRecord, BudgetRecord,
        RoutingAccuracy,
    ],
)  # fmt: skip
def test_the_format_page_names_every_field(record: type[BaseModel]) -> None:
    assert [field for field in record.model_fields if f"`{field}`" not in FORMAT] == []


def test_the_base_of_these_tests_is_a_valid_one() -> None:
    assert BaseIdentity.model_validate(BASE.model_dump()) == BASE
