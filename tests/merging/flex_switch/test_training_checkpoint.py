"""A learning that is interrupted: it goes on to the same bytes, from its own state and from no other."""

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import flip_bit, message
from support.training_cases import Reports, TrainingCase, text_case

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.flex_switch import finalisation as finish
from flexswitch.merging.flex_switch.parameters import Parameters
from flexswitch.merging.flex_switch.training_checkpoint import (
    TrainingCheckpoint,
    run_identity,
    training_checkpoint_file,
)
from flexswitch.merging.flex_switch.training_step import Progress, TrainingState

LONG = "steps=54"  # the rate is measured anew after 50


class StopError(Exception):
    """Stands for whatever stops a process."""


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> TrainingCase:
    return text_case(tmp_path_factory.mktemp("school"))


@pytest.fixture(scope="module")
def whole(school: TrainingCase, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What comes of it without an interruption, and without a state on disk."""
    return school.learn(tmp_path_factory.mktemp("whole") / "birds.fsw", LONG)


def interrupt(
    school: TrainingCase, output: Path, saving: TrainingCheckpoint, at: int, *settings: str
) -> None:
    """Learns up to a step and stops there, before the state is saved."""

    def on_step(progress: Progress) -> None:
        if progress.step == at:
            raise StopError

    with pytest.raises(StopError):
        school.learn(output, LONG, *settings, saving=saving, on_step=on_step)
    assert not output.exists()


def steps_of(school: TrainingCase, output: Path, saving: TrainingCheckpoint, *settings: str) -> list[int]:
    """Learns to the end; returns the steps that it took."""
    heard = Reports()
    school.learn(output, LONG, *settings, saving=saving, heard=heard, jobs=3)
    return [progress.step for progress in heard.steps]


@pytest.mark.parametrize(("every", "stops"), [(1, (2,)), (5, (12, 51)), (50, (51,))])
def test_one_that_goes_on_on_other_threads_ends_in_the_same_bytes(
    every: int, stops: tuple[int, ...], school: TrainingCase, whole: Artifact, tmp_path: Path
) -> None:
    output = tmp_path / "birds.fsw"
    saving = TrainingCheckpoint(training_checkpoint_file(output), every)
    for stop in stops:
        interrupt(school, output, saving, stop)
    steps = steps_of(school, output, saving)
    assert steps == list(range((stops[-1] - 1) // every * every + 1, 55))
    assert output.read_bytes() == whole.path.read_bytes()


def test_one_that_stops_after_its_last_step_only_ends(
    school: TrainingCase, whole: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "birds.fsw"
    saving = TrainingCheckpoint(training_checkpoint_file(output), 1)

    def stopped(*given: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(finish, "refit_scales", stopped)
        with pytest.raises(StopError):
            school.learn(output, LONG, saving=saving)
    assert steps_of(school, output, saving) == []
    assert output.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("setting", ["seed=1", "target_size=6KB"])
def test_the_state_of_another_run_is_refused(setting: str, school: TrainingCase, tmp_path: Path) -> None:
    output = tmp_path / "birds.fsw"
    saving = TrainingCheckpoint(training_checkpoint_file(output), 1)
    interrupt(school, output, saving, 3, setting)
    before = saving.path.read_bytes()
    told = message(InputError, lambda: steps_of(school, output, saving))
    assert told == (
        f"{saving.path}: belongs to a training with other inputs or settings; repeat that one, or delete "
        "the file"
    )
    assert saving.path.read_bytes() == before
    saving.remove()
    saving.remove()
    assert not saving.path.exists()


def test_the_state_of_another_fine_tune_or_other_exemplars_is_refused(
    school: TrainingCase, tmp_path: Path
) -> None:
    output = tmp_path / "birds.fsw"
    saving = TrainingCheckpoint(training_checkpoint_file(output), 1)
    interrupt(school, output, saving, 3)
    (tmp_path / "data").mkdir()
    lines = (school.data / "birds.train.jsonl").read_text().replace("word0", "word1")
    (tmp_path / "data" / "birds.train.jsonl").write_text(lines)
    shutil.copytree(school.finetuned, tmp_path / "model")
    other = text_case(tmp_path / "other", seed=5)
    shutil.copy(other.finetuned / "model.safetensors", tmp_path / "model")
    others = [
        TrainingCase(school.base, school.finetuned, tmp_path / "data", school.per_task),
        TrainingCase(school.base, tmp_path / "model", school.data, school.per_task),
    ]
    for each in others:
        told = message(InputError, lambda each=each: steps_of(each, output, saving))
        assert "belongs to a training with other inputs or settings" in told


# --- the file itself --------------------------------------------------------------------------------------


def learner(seed: int) -> TrainingState:
    """Returns a state in which no two numbers are the same."""
    generator = np.random.default_rng(seed)
    parameters = Parameters(
        np.array([1, 2]),
        np.array([0, 1, 4]),
        generator.normal(size=2),
        generator.normal(size=4),
        generator.normal(size=(2, 2)),
        generator.normal(size=(2, 2)),
    )
    factors, pace = generator.normal(size=2), generator.random()
    found = TrainingState(
        parameters, factors, step_size=pace, step=7, slope_product=generator.normal(), rate_square=2.5
    )
    found.adam.count = 7
    for name, array in parameters.arrays().items():
        found.adam.moments[name] = (generator.normal(size=array.shape), generator.normal(size=array.shape))
    found.history = [Progress(step, generator.normal(), generator.normal()) for step in range(1, 8)]
    return found


def numbers(state: TrainingState) -> list[object]:
    """Returns all that a step changes."""
    moments = [part.tolist() for pair in state.adam.moments.values() for part in pair]
    learned = [array.tolist() for array in state.parameters.arrays().values()]
    sums = [
        state.step,
        state.adam.count,
        state.slope_product,
        state.rate_square,
        state.step_size,
        state.history,
    ]
    return [*learned, *moments, state.factors.tolist(), *sums]


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    saving, state, found = TrainingCheckpoint(tmp_path / "a", 1, "run"), learner(0), learner(1)
    saving.restore(found)
    assert numbers(found) == numbers(learner(1))
    saving.save(state)
    saving.restore(found)
    assert numbers(found) == numbers(state)


def test_a_state_is_saved_after_every_so_many_steps(tmp_path: Path) -> None:
    saving, state = TrainingCheckpoint(tmp_path / "a", 3, "run"), learner(0)
    found = []
    for state.step in range(1, 8):
        saving.save(state)
        found.append(saving.path.exists())
        saving.remove()
    assert found == [False, False, True, False, False, True, False]


def test_a_damaged_state_is_refused_or_of_no_consequence(tmp_path: Path) -> None:
    saving, state = TrainingCheckpoint(tmp_path / "a", 1, "run"), learner(0)
    saving.save(state)
    whole, refused = saving.path.read_bytes(), 0
    for offset in range(0, len(whole), 7):
        saving.path.write_bytes(whole)
        flip_bit(saving.path, offset, bit=offset % 8)
        found = learner(1)
        with suppress(InputError):
            saving.restore(found)
            assert numbers(found) == numbers(state)
            continue
        told = message(InputError, lambda found=found: saving.restore(found))
        assert told.startswith(f"{saving.path}: is damaged (")
        assert told.endswith("); delete it to start again")
        assert numbers(found) == numbers(learner(1))
        refused += 1
    assert refused > len(whole) / 7 / 3


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_state_that_is_cut_short_is_refused(kept: int, tmp_path: Path) -> None:
    saving = TrainingCheckpoint(tmp_path / "a", 1, "run")
    saving.save(learner(0))
    saving.path.write_bytes(saving.path.read_bytes()[:kept])
    told = message(InputError, lambda: saving.restore(learner(1)))
    assert told.startswith(f"{saving.path}: is damaged (")
    assert told.endswith("); delete it to start again")


def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    saving = TrainingCheckpoint(tmp_path / "a", 1, "run")
    saving.save(learner(0))
    with np.load(saving.path) as arrays:
        older = {name: arrays[name][:2] if name == "sums" else arrays[name] for name in arrays.files}
    with saving.path.open("wb") as file:
        np.savez(file, **older)
    told = message(InputError, lambda: saving.restore(learner(1)))
    assert told == (
        f"{saving.path}: is damaged (it holds 2 sums, expected 3: the file is from another version); "
        "delete it to start again"
    )


def test_the_text_of_a_run_tells_settings_and_inputs_apart() -> None:
    runs = [({"a": 1}, {}), ({"a": 2}, {}), ({}, {"a": 1}), ({"a": "1"}, {}), ({"b": 1}, {})]
    assert len({run_identity(*run) for run in runs}) == len(runs)
    assert run_identity({"a": 1, "b": 2}, {}) == run_identity({"b": 2, "a": 1}, {})
