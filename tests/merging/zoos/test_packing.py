"""Packing makes a whole zoo or none, and the zoo names the adapter of its artifacts."""

import shutil

import pytest
import torch
from support.artifact_files import flip_block_bit
from support.checkpoints import message
from support.tiny_models import contents, pack, tiny_state
from support.zoo_files import task_file, without_hashes
from support.zoos import TASKS, change, copy_artifacts, create, make_originals

from flexswitch.codecs.errors import DecodeError, InputError
from flexswitch.codecs.format.artifact_writer import ArtifactWriter
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.records import ArtifactHeader, ModelRecord
from flexswitch.codecs.format.zoo import ZOO_FILE, open_zoo
from flexswitch.merging.task_vectors.restore import restore


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return make_originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def made(originals, tmp_path):
    return copy_artifacts(originals, tmp_path / "made")


@pytest.fixture
def zoo(originals, tmp_path):
    return shutil.copytree(originals / "zoo", tmp_path / "zoo")


@pytest.fixture
def other_base(originals):
    return originals / "other" / "fish.fsw"


def with_adapter(artifact, path, adapter):
    """Writes an artifact's header alone, with another adapter, and returns its path."""
    header = open_artifact(artifact).header.model_dump() | {"tensors": {}, "extras": {}}
    header["model"] = ModelRecord(adapter=adapter).model_dump()
    with ArtifactWriter(path) as writer:
        writer.finish(ArtifactHeader.model_validate(header))
    return path


# --- making a zoo -----------------------------------------------------------------------------------------


def test_a_zoo_holds_its_artifacts_and_nothing_else(tmp_path, made):
    path = tmp_path / "zoo"
    assert create(path, [made["tools"], made["birds"]]) == []
    assert without_hashes(contents(path)) == {ZOO_FILE, "tasks/birds.fsw", "tasks/tools.fsw"}
    zoo = open_zoo(path)
    assert list(zoo) == ["birds", "tools"]
    assert zoo.record.base == open_artifact(made["birds"]).header.base
    for task in zoo:
        record = zoo.record.tasks[task]
        assert (record.size, record.method) == ((path / record.file).stat().st_size, "t-switch")
        assert record.parameters == 6 + 30 + 54


def test_packed_tasks_restore_as_their_artifacts_do(tmp_path, made):
    zoo = pack(tmp_path / "zoo", list(made.values()))
    base = str(tmp_path / "made" / "base.safetensors")
    for task, file in made.items():
        packed, loose = restore(base, zoo[task]), restore(base, open_artifact(file))
        assert set(packed) == {*tiny_state(), "own.weight"}
        assert all(torch.equal(packed[name], loose[name]) for name in loose)


def test_the_order_of_the_artifacts_does_not_matter(tmp_path, made):
    pack(tmp_path / "one", [made[task] for task in TASKS])
    pack(tmp_path / "two", [made[task] for task in reversed(TASKS)])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_two_artifacts_of_one_task_are_refused(tmp_path, made):
    copy = shutil.copy(made["birds"], tmp_path / "other.fsw")
    assert message(InputError, lambda: create(tmp_path / "zoo", [made["birds"], copy])) == (
        f"{copy}: holds the same task 'birds' as {made['birds']}; give it another name: NAME={copy}"
    )
    assert not (tmp_path / "zoo").exists()


def test_an_artifact_is_packed_under_another_name(tmp_path, made):
    zoo = pack(tmp_path / "zoo", [made["birds"], f"other={made['birds']}"])
    assert list(zoo) == ["birds", "other"]
    assert zoo["other"].header == zoo["birds"].header.model_copy(update={"name": "other"})
    base = str(tmp_path / "made" / "base.safetensors")
    first, second = (restore(base, zoo[task]) for task in zoo)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_artifacts_of_two_bases_are_refused(tmp_path, made, other_base):
    first, second = (open_artifact(file).header.base.fingerprint[:12] for file in (made["birds"], other_base))
    assert message(InputError, lambda: create(tmp_path / "zoo", [made["birds"], other_base])) == (
        f"{other_base}: belongs to the base {second}, but {made['birds']} belongs to {first}; "
        "all tasks of a zoo must share one base"
    )
    assert not (tmp_path / "zoo").exists()


def test_an_existing_zoo_is_refused_unless_it_may_be_replaced(tmp_path, made, zoo):
    before = contents(zoo)
    assert message(InputError, lambda: create(zoo, [made["planets"]])) == (
        f"{zoo}: exists already; give another output, or --overwrite to replace it"
    )
    assert contents(zoo) == before
    create(zoo, [made["planets"]], overwrite=True)
    assert without_hashes(contents(zoo)) == {ZOO_FILE, "tasks/planets.fsw"}


def test_a_zoo_can_be_replaced_by_one_made_of_its_own_files(zoo):
    before = contents(zoo)
    create(zoo, [task_file(zoo, task) for task in TASKS], overwrite=True)
    assert contents(zoo) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_left_of_a_zoo_that_fails_in_the_middle(tmp_path, made, overwrite):
    if overwrite:
        pack(tmp_path / "zoo", [made["planets"]])
    flip_block_bit(made["cities"])
    before = contents(tmp_path)
    found = message(
        DecodeError, lambda: create(tmp_path / "zoo", [made[t] for t in TASKS], overwrite=overwrite)
    )
    assert found.startswith(f"{made['cities']}: tensor 'layer.bias', block 0, is damaged: its checksum is ")
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob("**/*.partial"))


def test_a_file_that_is_no_artifact_is_refused(tmp_path, made):
    weights = tmp_path / "made" / "birds.safetensors"
    assert message(InputError, lambda: create(tmp_path / "zoo", [made["birds"], weights])) == (
        f"{weights}: not a flexswitch artifact: its metadata lacks the key 'flexswitch'"
    )
    missing = tmp_path / "no.fsw"
    assert message(InputError, lambda: create(tmp_path / "zoo", [missing])) == (
        f"{missing}: no such file; expected an artifact (.fsw) that `flexswitch compress` wrote"
    )


# --- the adapter ------------------------------------------------------------------------------------------


def test_a_zoo_records_the_adapter_that_all_its_artifacts_name(tmp_path, made):
    files = [with_adapter(made[task], tmp_path / f"{task}.fsw", "hf-encoder") for task in TASKS]
    assert create(tmp_path / "zoo", files) == []
    assert open_zoo(tmp_path / "zoo").record.adapter == "hf-encoder"


def test_artifacts_that_name_different_adapters_give_a_note(tmp_path, made):
    file = with_adapter(made["birds"], tmp_path / "birds.fsw", "hf-encoder")
    assert create(tmp_path / "zoo", [file, made["cities"]]) == [
        "the artifacts name different adapters (None, hf-encoder); give one with --adapter"
    ]
    assert open_zoo(tmp_path / "zoo").record.adapter is None


def test_the_given_adapter_is_used(tmp_path, made):
    file = with_adapter(made["birds"], tmp_path / "birds.fsw", "hf-encoder")
    assert create(tmp_path / "zoo", [file, made["cities"]], adapter="python:a.b:c") == []
    assert open_zoo(tmp_path / "zoo").record.adapter == "python:a.b:c"
    change(tmp_path / "zoo", remove=["cities"])
    assert open_zoo(tmp_path / "zoo").record.adapter == "python:a.b:c"
    change(tmp_path / "zoo", adapter="hf-encoder")
    assert open_zoo(tmp_path / "zoo").record.adapter == "hf-encoder"


def test_removing_from_a_zoo_without_an_adapter_gives_no_note(zoo):
    assert change(zoo, remove=["birds"]) == []
    assert open_zoo(zoo).record.adapter is None
