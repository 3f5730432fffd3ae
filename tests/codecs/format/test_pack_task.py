"""A task's file in a zoo: the artifact with its tensors in another stored form."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.artifact_files import EXTRAS, HEADER, ROWS, assert_holds, stored_form
from support.checkpoints import message
from support.sparse_tensors import write_artifact
from support.zoo_files import writer_of

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.artifact_writer import PackedTensor, packed_tensor
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.zoo import file_sha256
from flexswitch.codecs.format.zoo_writer import pack_task
from flexswitch.codecs.registry import CODECS
from flexswitch.codecs.storage import store


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
    record = pack_task(artifact, writer_of(tmp_path), packed(artifact, codec))
    found = open_artifact(tmp_path / record.file)
    assert_holds(found, ROWS)
    for tensor in found.header.tensors.values():
        assert {block.codec for block in tensor.stored} == {codec}
    assert found.header.model_copy(update={"tensors": {}}) == artifact.header.model_copy(
        update={"tensors": {}}
    )
    assert (record.method, record.parameters) == ("t-switch", 1000)
    assert record.file == f"tasks/sst2.{record.sha256[:16]}.fsw"
    assert (record.size, record.sha256) == (found.path.stat().st_size, file_sha256(found.path))


def test_packing_twice_gives_the_same_bytes(tmp_path: Path, artifact: Artifact) -> None:
    (tmp_path / "again").mkdir()
    one = pack_task(artifact, writer_of(tmp_path), packed(artifact, "auto"))
    stored = open_artifact(tmp_path / one.file)
    two = pack_task(stored, writer_of(tmp_path / "again"), packed(artifact, "auto"))
    assert (tmp_path / "again" / two.file).read_bytes() == (tmp_path / one.file).read_bytes()
    assert one == two
    assert str(tmp_path).encode() not in (tmp_path / one.file).read_bytes()


def test_tensors_are_taken_as_they_come(tmp_path: Path, artifact: Artifact) -> None:
    tensors = (stored_form(artifact, name) for name in artifact.header.tensors)
    record = pack_task(artifact, writer_of(tmp_path), tensors)
    assert (tmp_path / record.file).read_bytes() == artifact.path.read_bytes()


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_tensors_is_a_bug_that_stores_nothing(
    tmp_path: Path, artifact: Artifact, change: int
) -> None:
    tensors = list(packed(artifact, "auto"))
    given = [*tensors, tensors[0]] if change > 0 else tensors[:-1]
    with pytest.raises(ValueError, match=r"^zip\(\) argument 2 is (shorter|longer) than argument 1$"):
        pack_task(artifact, writer_of(tmp_path), given)
    assert not (tmp_path / "tasks").exists()


def test_a_task_packed_in_another_form_is_another_file(tmp_path: Path, artifact: Artifact) -> None:
    one = pack_task(artifact, writer_of(tmp_path), packed(artifact, "auto"))
    two = pack_task(artifact, writer_of(tmp_path), packed(artifact, "raw"))
    assert {(tmp_path / record.file).stat().st_size for record in (one, two)} == {one.size, two.size}


def test_an_error_in_the_middle_stores_nothing(tmp_path: Path, artifact: Artifact) -> None:
    found = message(UsageError, lambda: pack_task(artifact, writer_of(tmp_path), packed(artifact, "zip")))
    assert found == f"no codec is named 'zip' (known: {', '.join(CODECS)})"
    assert not (tmp_path / "tasks").exists()
