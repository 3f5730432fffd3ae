"""Adding and removing tasks leaves all other files of a zoo as they were, byte by byte."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.artifact_files import flip_block_bit
from support.checkpoints import flip_bit, message
from support.tiny_models import contents, make_artifact, pack, save_state, tiny_state
from support.zoo_files import INDEX_FILE, index_file, task_file, without_hashes, write_index
from support.zoos import TASKS, change, copy_artifacts, make_originals

from flexswitch.codecs.errors import ArtifactError, DecodeError, InputError, UsageError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.zoo import ZOO_FILE, ZooRecord, file_sha256, open_zoo
from flexswitch.codecs.format.zoo_writer import LOCK_FILE
from flexswitch.merging.routing.query_set import QuerySet, QuerySetHeader, read_query_set
from flexswitch.merging.zoos.pack import Form


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


@pytest.fixture
def indexed(zoo):
    """The zoo with two exemplars a task."""
    header = QuerySetHeader(tasks=TASKS, features="pooled", per_task=2, seed=0)
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    write_index(zoo, QuerySet(header, features, np.repeat(np.arange(3, dtype=np.int32), 2)))
    return zoo


def changed_files(before, path):
    after = contents(path)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return without_hashes(changed)


# --- adding and removing ----------------------------------------------------------------------------------


def test_adding_a_task_changes_only_its_file_and_zoo_json(zoo, made):
    before = contents(zoo)
    assert change(zoo, add=[made["planets"]]) == []
    assert changed_files(before, zoo) == {"tasks/planets.fsw", ZOO_FILE}
    assert list(open_zoo(zoo)) == ["birds", "cities", "planets", "tools"]
    open_zoo(zoo)["planets"]


def test_adding_tasks_one_by_one_gives_the_same_zoo_as_packing_them_together(tmp_path, made, zoo):
    pack(tmp_path / "grown", [made["tools"]])
    for task in ("cities", "birds"):
        change(tmp_path / "grown", add=[made[task]])
    assert contents(tmp_path / "grown") == contents(zoo)


def test_removing_a_task_changes_only_its_file_and_zoo_json(zoo):
    before = contents(zoo)
    assert change(zoo, remove=["cities"]) == []
    assert changed_files(before, zoo) == {"tasks/cities.fsw", ZOO_FILE}
    assert list(open_zoo(zoo)) == ["birds", "tools"]
    assert "tasks/cities.fsw" not in without_hashes(contents(zoo))


def test_one_change_adds_and_removes(zoo, made):
    change(zoo, add=[made["planets"]], remove=["birds", "cities", "birds"])
    assert list(open_zoo(zoo)) == ["planets", "tools"]
    assert without_hashes(contents(zoo)) == {ZOO_FILE, "tasks/planets.fsw", "tasks/tools.fsw"}


def test_the_last_task_can_be_removed_and_others_added_later(zoo, made):
    change(zoo, remove=TASKS)
    assert without_hashes(contents(zoo)) == {ZOO_FILE}
    assert not (zoo / "tasks").exists()
    change(zoo, add=[made["planets"]])
    assert list(open_zoo(zoo)) == ["planets"]
    open_zoo(zoo)["planets"]


def newer(made, tmp_path, task):
    """An artifact of the same task and base, from other weights."""
    folder = tmp_path / "newer"
    folder.mkdir()
    state = {name: tensor + 1 for name, tensor in tiny_state().items()}
    weights = save_state(folder / "weights.safetensors", state)
    return make_artifact(made[task].parent / "base.safetensors", weights, folder / f"{task}.fsw").path


def test_a_task_that_the_zoo_has_is_refused_without_overwrite(tmp_path, zoo, made):
    before = contents(zoo)
    again = newer(made, tmp_path, "birds")
    assert message(InputError, lambda: change(zoo, add=[made["planets"], again])) == (
        f"{zoo}: already has a task 'birds'; give --overwrite to replace it"
    )
    assert contents(zoo) == before
    change(zoo, add=[again], overwrite=True)
    assert changed_files(before, zoo) == {"tasks/birds.fsw", ZOO_FILE}
    assert open_zoo(zoo)["birds"].header.tensors == open_artifact(again).header.tensors


def test_a_task_removed_in_the_same_change_can_be_added_anew(tmp_path, zoo, made):
    again = newer(made, tmp_path, "birds")
    change(zoo, add=[again], remove=["birds"])
    assert list(open_zoo(zoo)) == TASKS
    assert open_zoo(zoo)["birds"].header.tensors == open_artifact(again).header.tensors


def test_a_task_is_replaced_from_the_zoos_own_file(zoo):
    before = contents(zoo)
    change(zoo, add=[task_file(zoo, "birds")], overwrite=True)
    assert contents(zoo) == before


def test_a_task_of_another_base_is_refused(zoo, made, other_base):
    before = contents(zoo)
    base, other = (open_artifact(file).header.base.fingerprint[:12] for file in (made["birds"], other_base))
    assert message(InputError, lambda: change(zoo, add=[made["planets"], other_base])) == (
        f"{other_base}: belongs to the base {other}, but {zoo} belongs to {base}; "
        "all tasks of a zoo must share one base"
    )
    assert contents(zoo) == before


def test_an_unknown_task_is_not_removed(zoo, made):
    before = contents(zoo)
    assert message(InputError, lambda: change(zoo, add=[made["planets"]], remove=["birds", "tool"])) == (
        f"{zoo}: no task is named 'tool'; did you mean 'tools'? (known: birds, cities, tools)"
    )
    assert contents(zoo) == before


def test_two_added_artifacts_of_one_task_are_refused(tmp_path, zoo, made):
    copy = shutil.copy(made["planets"], tmp_path / "copy.fsw")
    assert message(InputError, lambda: change(zoo, add=[made["planets"], copy])) == (
        f"{copy}: holds the same task 'planets' as {made['planets']}; give it another name: NAME={copy}"
    )


def test_a_folder_that_is_not_a_zoo_is_refused(tmp_path, made):
    assert message(InputError, lambda: change(tmp_path / "made", add=[made["birds"]])) == (
        f"{tmp_path / 'made'}: not a zoo: it has no zoo.json; make one with `flexswitch pack`"
    )


# --- an index beside the tasks ----------------------------------------------------------------------------


def test_adding_a_task_notes_that_the_index_lacks_it(indexed, made):
    before = contents(indexed)
    assert change(indexed, add=[made["planets"]]) == [
        f"the query index lacks planets; add them: flexswitch index {indexed} --add --base BASE --exemplars DIR"
    ]
    assert changed_files(before, indexed) == {"tasks/planets.fsw", ZOO_FILE}
    assert read_query_set(open_zoo(indexed)).header.tasks == TASKS


def test_removing_a_task_drops_its_exemplars(indexed):
    before = contents(indexed)
    assert change(indexed, remove=["cities"]) == []
    assert changed_files(before, indexed) == {"tasks/cities.fsw", INDEX_FILE, ZOO_FILE}
    query_set = read_query_set(open_zoo(indexed))
    assert query_set.header.tasks == ["birds", "tools"]
    assert query_set.points.tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert query_set.task_ids.tolist() == [0, 0, 1, 1]


def test_replacing_a_task_drops_its_exemplars_with_a_note(tmp_path, indexed, made):
    again = newer(made, tmp_path, "birds")
    assert change(indexed, add=[again, made["planets"]], overwrite=True) == [
        f"the query index lacks birds, planets; add them: flexswitch index {indexed} --add --base BASE --exemplars DIR"
    ]
    assert read_query_set(open_zoo(indexed)).header.tasks == ["cities", "tools"]


def test_the_index_is_removed_with_the_last_of_its_tasks(indexed, made):
    assert change(indexed, add=[made["planets"]], remove=TASKS) == [
        f"the query index was removed with the last of its tasks; build it again: flexswitch index {indexed} --base BASE --exemplars DIR"
    ]
    assert without_hashes(contents(indexed)) == {ZOO_FILE, "tasks/planets.fsw"}
    assert open_zoo(indexed).record.index is None


def test_a_damaged_index_is_reported_and_the_zoo_stays_unchanged(indexed, made):
    flip_bit(index_file(indexed), -1)
    before = contents(indexed)
    found = message(ArtifactError, lambda: change(indexed, add=[made["planets"]], remove=["birds"]))
    assert found.startswith(f"{index_file(indexed)}: is not the file that was packed as the query index: ")
    assert contents(indexed) == before


# --- a change that fails in the middle --------------------------------------------------------------------


def test_a_damaged_artifact_leaves_the_zoo_as_it_was(tmp_path, indexed, made):
    again = newer(made, tmp_path, "birds")
    flip_block_bit(made["planets"])
    before = contents(indexed)
    files = [again, made["planets"]]
    message(DecodeError, lambda: change(indexed, add=files, remove=["tools"], overwrite=True))
    assert contents(indexed) == before
    assert sorted(path.name for path in indexed.iterdir()) == [LOCK_FILE, "index", "tasks", ZOO_FILE]


def test_an_unknown_codec_leaves_the_zoo_as_it_was(zoo, made):
    before = contents(zoo)
    message(UsageError, lambda: change(zoo, add=[made["planets"]], form=Form("huffman")))
    assert contents(zoo) == before


def test_zoo_json_is_written_after_all_other_files(indexed, made, monkeypatch):
    replaced, replace, before = [], os.replace, open_zoo(indexed).record

    def check_then_replace(source, target):
        if target == indexed / ZOO_FILE:
            record = ZooRecord.model_validate_json(Path(source).read_text())
            for task in record.tasks.values():
                assert file_sha256(indexed / task.file) == task.sha256
            assert file_sha256(indexed / record.index.file) == record.index.sha256
            assert open_zoo(indexed).record == before
            assert all((indexed / task.file).exists() for task in before.tasks.values())
            assert (indexed / before.index.file).exists()
        replaced.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", check_then_replace)
    change(indexed, add=[made["planets"]], remove=["tools"])
    assert replaced[-1] == indexed / ZOO_FILE
    assert list(open_zoo(indexed)) == ["birds", "cities", "planets"]
    assert not (indexed / before.tasks["tools"].file).exists()
