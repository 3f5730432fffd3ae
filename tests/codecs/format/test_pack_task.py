"""A task's file in a zoo: the artifact with its tensors in another stored form."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.artifact_files import EXTRAS, HEADER, ROWS, assert_holds, stored_form
from support.checkpoints import message
from support.sparse_tensors import write_artifact

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.artifact_writer import PackedTensor, packed_tensor
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.zoo import file_sha256, pack_task
from flexswitch.codecs.registry import CODECS
from flexswitch.codecs.storage import store

EXAMPLE = "tasks/sst2.fsw"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return open_artifact(write_artifact(tmp_path / "made-elsewhere.fsw", ROWS, EXTRAS, HEADER))


def packed(artifact: Artifact, codec: str) -> Iterator[PackedTensor]:
    """Yields an artifact's tensors as a codec stores them."""
    for name, record in artifact.header.tensors.items():
        sparse = artifact.sparse(name)
        yield packed_tensor(sparse, store(sparse, codec), record.scale, record.dtype)


@pytest.mark.parametrize("codec", CODECS)
def test_a_task_is_stored_in_the_form_that_is_given(tmp_path: Path, artifact: Artifact, codec: str) -> None:
    record = pack_task(artifact, tmp_path, packed(artifact, codec))
    found = open_artifact(tmp_path / EXAMPLE)
    assert_holds(found, ROWS)
    for tensor in found.header.tensors.values():
        assert {block.codec for block in tensor.stored} == {codec}
    assert found.header.model_copy(update={"tensors": {}}) == artifact.header.model_copy(
        update={"tensors": {}}
    )
    assert (record.file, record.method, record.parameters) == (EXAMPLE, "t-switch", 1000)
    assert (record.size, record.sha256) == (found.path.stat().st_size, file_sha256(found.path))


def test_packing_twice_gives_the_same_bytes(tmp_path: Path, artifact: Artifact) -> None:
    (tmp_path / "again").mkdir()
    one = pack_task(artifact, tmp_path, packed(artifact, "auto"))
    two = pack_task(open_artifact(tmp_path / EXAMPLE), tmp_path / "again", packed(artifact, "auto"))
    assert (tmp_path / "again" / EXAMPLE).read_bytes() == (tmp_path / EXAMPLE).read_bytes()
    assert one == two
    assert str(tmp_path).encode() not in (tmp_path / EXAMPLE).read_bytes()


def test_tensors_are_taken_as_they_come(tmp_path: Path, artifact: Artifact) -> None:
    pack_task(artifact, tmp_path, (stored_form(artifact, name) for name in artifact.header.tensors))
    assert (tmp_path / EXAMPLE).read_bytes() == artifact.path.read_bytes()


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_tensors_is_a_bug_that_leaves_nothing(
    tmp_path: Path, artifact: Artifact, change: int
) -> None:
    tensors = list(packed(artifact, "auto"))
    given = [*tensors, tensors[0]] if change > 0 else tensors[:-1]
    with pytest.raises(ValueError, match=r"^zip\(\) argument 2 is (shorter|longer) than argument 1$"):
        pack_task(artifact, tmp_path, given)
    assert list((tmp_path / "tasks").iterdir()) == []


def test_a_packed_task_is_not_replaced_unasked(tmp_path: Path, artifact: Artifact) -> None:
    pack_task(artifact, tmp_path, packed(artifact, "auto"))
    found = message(InputError, lambda: pack_task(artifact, tmp_path, packed(artifact, "raw")))
    assert found == f"{tmp_path / EXAMPLE}: exists already; give another output, or --overwrite to replace it"


def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path, artifact: Artifact) -> None:
    found = message(UsageError, lambda: pack_task(artifact, tmp_path, packed(artifact, "zip")))
    assert found == f"no codec is named 'zip' (known: {', '.join(CODECS)})"
    assert list((tmp_path / "tasks").iterdir()) == []
