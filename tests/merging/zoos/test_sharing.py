"""A zoo whose tasks share one vector is packed whole, changed by the same rules as any other, and trusted no more."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import flip_bit, message
from support.shared_zoos import restored_deltas, save_states, shared_zoo, states
from support.tiny_models import changed_state, contents
from support.zoo_files import without_hashes

from flexswitch.codecs.errors import ArtifactError, InputError, UnusedOptionError, UsageError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.zoo import ZOO_FILE, open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.extract import extract
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.commands.push import push
from flexswitch.merging.commands.verify import verify
from flexswitch.merging.methods.registry import method_names
from flexswitch.merging.task_vectors.add_task import add_task
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.shared_vector import artifact_vector
from flexswitch.merging.task_vectors.task_vector import delta_tensor

FORMS = method_names("shared")
OPEN = ("rtvq", "twin")
SOME = [each if each in ("emr", "twin") else pytest.param(each, marks=pytest.mark.deep) for each in FORMS]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each form a folder with models/ and zoo/ of the tasks a, b and c."""
    folder = tmp_path_factory.mktemp("originals")
    for method in FORMS:
        shared_zoo(folder / method, method)
    return folder


@pytest.fixture
def folders(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals, tmp_path / "copies")


def shared_file(zoo: Path) -> Path:
    record = open_zoo(zoo).record.shared
    assert record is not None
    return zoo / record.file


@pytest.mark.parametrize("method", FORMS)
def test_a_zoo_holds_one_shared_vector_and_its_tasks(originals: Path, method: str) -> None:
    path = originals / method / "zoo"
    files = {ZOO_FILE, "shared/vector.fsw", *(f"tasks/{task}.fsw" for task in "abc")}
    assert without_hashes(contents(path)) == files
    zoo = open_zoo(path)
    shared = zoo.shared()
    assert shared is not None
    assert zoo.record.shared is not None
    assert (shared.header.name, shared.header.method.name) == ("shared", method)
    assert zoo.stored_bytes() == sum(file.stat().st_size for file in path.rglob("*.fsw"))
    for task in zoo:
        assert zoo.record.tasks[task].method == method
        assert zoo[task].header.shared is not None
        assert zoo[task].shared is shared
    lines = verify(path).lines
    assert lines == [f"{path}: 3 tasks, all hashes, checksums and counts match"]


@pytest.mark.parametrize("method", SOME)
def test_each_way_to_a_task_s_model_gives_the_same_one(originals: Path, tmp_path: Path, method: str) -> None:
    folder = originals / method
    base, deltas = folder / "models" / "base.safetensors", restored_deltas(folder / "zoo")
    before, zoo = load_file(base), open_zoo(folder / "zoo")
    for number, task in enumerate("abc"):
        merge([folder / "zoo"], tmp_path / task, base=base, task=task)
        found = load_file(tmp_path / task / "model.safetensors")
        assert torch.equal(found.pop("own.weight"), torch.full((2, 6), float(number)))
        for name, weights in before.items():
            delta = torch.from_numpy(deltas[task].get(name, np.zeros(weights.shape)).astype(np.float32))
            assert torch.equal(found[name], torch.where(delta == 0, weights, weights + delta)), name
        state = restore(base, zoo[task])
        live = {name: weights.clone() for name, weights in before.items()}
        add_task(live, zoo[task], base=base)
        assert all(torch.equal(state[name], found[name]) for name in found)
        assert all(torch.equal(live[name], found[name]) for name in found)


@pytest.mark.parametrize("method", SOME)
def test_no_byte_depends_on_threads_memory_or_kind_of_source(
    originals: Path, tmp_path: Path, method: str
) -> None:
    models, base = originals / method / "models", originals / method / "models" / "base.safetensors"
    vectors = []
    for task in "abc":
        compress(models / f"{task}.safetensors", tmp_path / f"{task}.fsw", base=base, method="lossless")
        vectors.append(tmp_path / f"{task}.fsw")
    pack(vectors, tmp_path / "zoo", share=method, base=base, jobs=3, memory=1)
    assert contents(tmp_path / "zoo") == contents(originals / method / "zoo")


def test_a_setting_of_one_task_changes_that_task_alone(originals: Path, tmp_path: Path) -> None:
    zoo = shared_zoo(tmp_path, "tall", set_for=[("b", {"mask_lambda": "0.2"})])
    before = open_zoo(originals / "tall" / "zoo").record
    assert zoo.record.shared == before.shared
    same = {task: zoo.record.tasks[task] == before.tasks[task] for task in zoo}
    assert same == {"a": True, "b": False, "c": True}
    assert [zoo[task].header.method.settings["mask_lambda"] for task in zoo] == [0.4, 0.2, 0.4]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"share": "tvq"}, "no shared method is named 'tvq'"),
        ({"settings": {"drop": 0.5}}, "no setting of emr is named 'drop'"),
        ({"set_for": [("a", {"shared_bits": 16})]}, "--set-for a: shared_bits of emr is the same for all"),
        ({"codec": "raw"}, "--codec raw: with --share the smallest form is taken"),
        ({"base": None}, "--share needs --base BASE"),
        ({"share": None, "base": None, "settings": {"bits": 2}}, "--set and --set-for are for --share"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, options: dict[str, object], expected: str
) -> None:
    base, sources = save_states(tmp_path / "models", *states(2))
    given = {"share": "emr", "base": base, **options}
    assert expected in message(UsageError, lambda: pack(sources, tmp_path / "zoo", **given))  # type: ignore[arg-type]
    assert not (tmp_path / "zoo").exists()


def test_a_base_is_for_shared_vectors_alone(tmp_path: Path) -> None:
    base, sources = save_states(tmp_path / "models", *states(2))
    found = message(UnusedOptionError, lambda: pack(sources, tmp_path / "zoo", base=base))
    assert found == "--base: it is for --share, as artifacts name their base; leave it out"


def test_a_setting_of_an_unknown_task_is_refused(tmp_path: Path) -> None:
    base, sources = save_states(tmp_path / "models", *states(2))
    given = [("d", {"mask_lambda": 0.2})]
    found = message(UsageError, lambda: pack(sources, tmp_path / "z", share="tall", base=base, set_for=given))
    assert found.startswith("--set-for d: no task is named 'd'")
    assert not (tmp_path / "z").exists()


# --- changing it ------------------------------------------------------------------------------------------


FOURTH = changed_state(states(3)[0], seed=9)


def fourth(folder: Path) -> tuple[Path, str]:
    """Writes a fourth task; returns the base and TASK=PATH."""
    base, sources = save_states(folder / "more", states(3)[0], [*states(3)[1], FOURTH])
    return base, sources[3]


@pytest.mark.parametrize("method", FORMS)
def test_a_task_that_comes_later_uses_the_shared_vector_or_is_refused(folders: Path, method: str) -> None:
    zoo, (base, source) = folders / method / "zoo", fourth(folders)
    before = contents(zoo)
    if method not in OPEN:
        found = message(InputError, lambda: pack([source], zoo, add=True, share=method, base=base))
        assert "another task would change the vector that tasks of" in found
        assert contents(zoo) == before
        return
    pack([source], zoo, add=True, share=method, base=base)
    after = contents(zoo)
    assert {name for name in before if before[name] != after.get(name)} == {ZOO_FILE}
    assert without_hashes(set(after) - set(before)) == {"tasks/d.fsw"}
    base_state = states(3)[0]
    for name, delta in restored_deltas(zoo)["d"].items():
        if method == "rtvq" or base_state[name].ndim != 2:
            rest = np.abs(delta - (FOURTH[name] - base_state[name]).numpy()).max()
            assert rest < (0.15 if method == "rtvq" else 1e-6), name


def test_adding_needs_the_form_and_the_settings_of_the_zoo(folders: Path) -> None:
    (base, source), zoo = fourth(folders), folders / "rtvq" / "zoo"
    found = message(InputError, lambda: pack([source], zoo, add=True, share="twin", base=base))
    assert found == f"{zoo}: shares a vector of rtvq, expected one of twin; pack a new zoo"
    given = {"bits": 4}
    found = message(
        UsageError, lambda: pack([source], zoo, add=True, share="rtvq", base=base, settings=given)
    )
    assert found.startswith("--set: the settings of a shared vector are those")
    taken = source.replace("d=", "a=")
    found = message(InputError, lambda: pack([taken], zoo, add=True, share="rtvq", base=base))
    assert found == f"{zoo}: already has a task 'a'; give --overwrite to replace it"


@pytest.mark.parametrize("method", SOME)
def test_the_shared_vector_stays_as_long_as_a_task_needs_it(folders: Path, method: str) -> None:
    zoo, (base, source) = folders / method / "zoo", fourth(folders)
    kept = shared_file(zoo)
    task, path = source.split("=")
    compress(path, folders / "d.fsw", base=base, name=task, method="t-switch")
    pack([folders / "d.fsw"], zoo, add=True)
    pack([], zoo, remove=["a", "b"])
    assert kept.exists()
    assert list(open_zoo(zoo)) == ["c", "d"]
    assert "c" in restored_deltas(zoo)
    pack([], zoo, remove=["c"])
    assert open_zoo(zoo).record.shared is None
    assert without_hashes(contents(zoo)) == {ZOO_FILE, "tasks/d.fsw"}
    assert not kept.exists()


@pytest.mark.parametrize("method", FORMS)
def test_an_artifact_of_its_own_beside_shared_tasks_changes_none_of_them(folders: Path, method: str) -> None:
    zoo, (base, source) = folders / method / "zoo", fourth(folders)
    task, path = source.split("=")
    compress(path, folders / "d.fsw", base=base, name=task, method="t-switch")
    before, deltas = contents(zoo), restored_deltas(zoo)
    pack([folders / "d.fsw"], zoo, add=True)
    verify(zoo)
    after, found = contents(zoo), restored_deltas(zoo)
    assert {name for name in before if before[name] != after.get(name)} == {ZOO_FILE}
    own = artifact_vector(open_artifact(folders / "d.fsw"))
    deltas["d"] = {name: delta_tensor(own, name).numpy() for name in own.tensors}
    for each, tensors in deltas.items():
        for name, delta in tensors.items():
            np.testing.assert_array_equal(found[each][name], delta)
    merge([zoo], folders / "average", base=base, method="average")
    merged, base_state = load_file(folders / "average" / "model.safetensors"), load_file(base)
    for name, tensor in base_state.items():
        mean = sum(torch.from_numpy(np.asarray(each.get(name, 0.0))) for each in deltas.values()) / 4
        torch.testing.assert_close(merged[name].double(), tensor.double() + mean, atol=1e-6, rtol=0)
    pack([], zoo, remove=["d"])
    assert contents(zoo) == before


def test_a_task_cannot_be_packed_without_its_shared_vector(folders: Path) -> None:
    zoo, other = folders / "emr" / "zoo", folders / "tall" / "zoo"
    file = open_zoo(zoo).task_file("a")
    assert open_artifact(file).header.shared is not None
    for action in (
        lambda: pack([file], folders / "new"),
        lambda: pack([file], other, add=True, overwrite=True),
    ):
        assert "computed by the shared vector of another zoo" in message(InputError, action)
    again = shutil.copy(file, folders / "a.fsw")
    before = contents(zoo)
    pack([], zoo, remove=["a"])
    pack([again], zoo, add=True)
    assert contents(zoo) == before
    base = folders / "emr" / "models" / "base.safetensors"
    found = message(InputError, lambda: merge([again], folders / "out", base=base, task="a"))
    assert "open the zoo instead of this file" in found


def test_a_wrong_base_is_refused_and_nothing_is_left(folders: Path, tmp_path: Path) -> None:
    base, sources = save_states(tmp_path / "models", *states(2))
    wrong, _ = save_states(tmp_path / "other", *states(3))
    compress(sources[0].split("=")[1], tmp_path / "a.fsw", base=base, name="a", method="p-discard")
    for options in ({}, {"jobs": 2}):
        action = lambda: pack([tmp_path / "a.fsw"], tmp_path / "zoo", share="emr", base=wrong, **options)  # noqa: B023, E731
        assert "fingerprint" in message(InputError, action)
        assert not (tmp_path / "zoo").exists()
    zoo = folders / "rtvq" / "zoo"
    before = contents(zoo)
    changed = {name: tensor + 1 for name, tensor in states(3)[0].items()}
    other, sources = save_states(tmp_path / "changed", changed, [changed])
    found = message(
        InputError, lambda: pack([f"e={sources[0][2:]}"], zoo, add=True, share="rtvq", base=other)
    )
    assert "is not the base of" in found
    assert contents(zoo) == before


def test_a_resized_checkpoint_is_refused_with_a_way_to_pack_it(tmp_path: Path) -> None:
    base, tasks = states(2)
    tasks[1]["layers.0.w"] = torch.ones(19, 23)
    place, sources = save_states(tmp_path / "models", base, tasks)
    found = message(InputError, lambda: pack(sources, tmp_path / "zoo", share="emr", base=place))
    assert found.endswith(
        "take the overlapping rows with --on-resize rows; that is an option of `extract`: give the task vector "
        "that it makes"
    )
    vector = extract(place, sources[1][2:], tmp_path / "b.tv.safetensors", on_resize="extra")
    zoo = pack([sources[0], f"b={vector.path}"], tmp_path / "zoo", share="emr", base=place)
    whole = artifact_vector(zoo["b"], open_checkpoint(str(place))).extra("layers.0.w")
    assert whole.shape == (19, 23)


# --- trusting it ------------------------------------------------------------------------------------------


def test_a_missing_or_changed_shared_vector_is_reported(folders: Path) -> None:
    zoo = folders / "emr" / "zoo"
    file = shared_file(zoo)
    flip_bit(file, -40)
    found = message(ArtifactError, lambda: open_zoo(zoo)["a"])
    assert f"{file}: is not the file that was packed as the shared vector" in found
    with pytest.raises(ArtifactError, match=r"vector\.[0-9a-f]{16}\.fsw"):
        verify(zoo)
    file.unlink()
    assert f"{file}: missing" in message(ArtifactError, lambda: open_zoo(zoo)["a"])
    with pytest.raises(ArtifactError, match=r"missing; zoo\.json lists it as the shared vector"):
        verify(zoo)


def test_a_shared_vector_outside_the_zoo_is_refused(folders: Path) -> None:
    document = (folders / "emr" / "zoo" / ZOO_FILE).read_text()
    name = Path(shared_file(folders / "emr" / "zoo")).name
    for place in (f"../tall/zoo/shared/{name}", f"/shared/{name}", f"tasks/{name}", "shared/vector.fsw"):
        (folders / "emr" / "zoo" / ZOO_FILE).write_text(document.replace(f"shared/{name}", place))
        found = message(ArtifactError, lambda: open_zoo(folders / "emr" / "zoo"))
        assert "the shared vector names the file" in found


def test_a_shared_vector_of_another_zoo_does_not_fit(folders: Path) -> None:
    zoo, other = folders / "emr" / "zoo", folders / "tall" / "zoo"
    record = open_zoo(zoo).record
    shutil.copy(shared_file(other), zoo / "shared")
    changed = record.model_copy(update={"shared": open_zoo(other).record.shared})
    (zoo / ZOO_FILE).write_text(changed.model_dump_json())
    assert "needs the shared vector" in message(ArtifactError, lambda: open_zoo(zoo)["a"])
    (zoo / ZOO_FILE).write_text(record.model_copy(update={"shared": None}).model_dump_json())
    assert "and its zoo has none" in message(ArtifactError, lambda: open_zoo(zoo)["a"])


def test_a_zoo_with_a_link_in_place_of_the_shared_folder_is_not_changed(folders: Path) -> None:
    zoo = folders / "emr" / "zoo"
    (zoo / "shared").rename(folders / "elsewhere")
    (zoo / "shared").symlink_to(folders / "elsewhere")
    assert "shared: is a link" in message(InputError, lambda: pack([], zoo, remove=["a"]))
    assert list((folders / "elsewhere").iterdir())


def test_the_shared_vector_is_sent_with_the_zoo(originals: Path) -> None:
    zoo = originals / "emr" / "zoo"
    sent = push(zoo, "org/zoo", dry_run=True)
    assert str(shared_file(zoo).relative_to(zoo)) in sent.files
    assert f"| *shared by all* | emr | {shared_file(zoo).stat().st_size:,} |" in sent.card
