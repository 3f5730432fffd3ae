"""A training that was interrupted continues from its own state, and from no other, to the same bytes."""

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import flip_bit, message
from support.training_cases import Reports, TrainingCase, text_case

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.training_file import run_identity, training_file
from flexswitch.merging.flex_switch.parameters import Parameters
from flexswitch.merging.flex_switch.training_checkpoint import TrainingCheckpoint
from flexswitch.merging.flex_switch.training_step import Progress, TrainingState

LONG = "steps=54"  # the rate is measured anew after 50


class StopError(Exception):
    """Stands for whatever stops a process."""


@pytest.fixture(scope="module")
def whole(case: TrainingCase, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What comes of it without an interruption, and without a state on disk."""
    return case.train(tmp_path_factory.mktemp("whole") / "birds.fsw", LONG)


def interrupt(
    case: TrainingCase, output: Path, checkpoint: TrainingCheckpoint, at: int, *settings: str
) -> None:
    """Trains up to a step and stops there, before the state is saved."""

    def on_step(progress: Progress) -> None:
        if progress.step == at:
            raise StopError

    with pytest.raises(StopError):
        case.train(output, LONG, *settings, checkpoint=checkpoint, on_step=on_step)
    assert not output.exists()


def steps_of(case: TrainingCase, output: Path, checkpoint: TrainingCheckpoint, *settings: str) -> list[int]:
    """Trains to the end; returns the steps that it took."""
    reports = Reports()
    case.train(output, LONG, *settings, checkpoint=checkpoint, reports=reports, jobs=3)
    return [progress.step for progress in reports.steps]


@pytest.mark.parametrize(
    ("every", "stops"),
    [
        (5, (12, 51)),
        pytest.param(1, (2,), marks=pytest.mark.deep),
        pytest.param(50, (51,), marks=pytest.mark.deep),
    ],
)
@pytest.mark.deep
def test_a_training_continued_on_other_threads_ends_in_the_same_bytes(
    every: int, stops: tuple[int, ...], case: TrainingCase, whole: Artifact, tmp_path: Path
) -> None:
    output = tmp_path / "birds.fsw"
    checkpoint = TrainingCheckpoint(training_file(output), every)
    for stop in stops:
        interrupt(case, output, checkpoint, stop)
    steps = steps_of(case, output, checkpoint)
    assert steps == list(range((stops[-1] - 1) // every * every + 1, 55))
    assert output.read_bytes() == whole.path.read_bytes()


@pytest.mark.deep
def test_a_training_stopped_after_its_last_step_takes_no_further_step(
    case: TrainingCase, trained: Artifact, tmp_path: Path
) -> None:
    output = tmp_path / "birds.fsw"
    checkpoint = TrainingCheckpoint(training_file(output), trained.header.method.settings["steps"])
    case.train(output, checkpoint=checkpoint)
    output.unlink()
    reports = Reports()
    case.train(output, checkpoint=checkpoint, reports=reports)
    assert reports.steps == []
    assert output.read_bytes() == trained.path.read_bytes()


@pytest.mark.parametrize("setting", ["seed=1", "target_size=6KB"])
@pytest.mark.deep
def test_the_state_of_another_run_is_refused(setting: str, case: TrainingCase, tmp_path: Path) -> None:
    output = tmp_path / "birds.fsw"
    checkpoint = TrainingCheckpoint(training_file(output), 1)
    interrupt(case, output, checkpoint, 3, setting)
    before = checkpoint.path.read_bytes()
    found_message = message(InputError, lambda: steps_of(case, output, checkpoint))
    assert found_message == (
        f"{checkpoint.path}: belongs to a training with other inputs or settings; repeat that one, or delete "
        "the file"
    )
    assert checkpoint.path.read_bytes() == before
    checkpoint.remove()
    checkpoint.remove()
    assert not checkpoint.path.exists()


@pytest.mark.deep
def test_the_state_of_another_fine_tune_or_other_exemplars_is_refused(
    case: TrainingCase, tmp_path: Path
) -> None:
    output = tmp_path / "birds.fsw"
    checkpoint = TrainingCheckpoint(training_file(output), 1)
    interrupt(case, output, checkpoint, 3)
    (tmp_path / "data").mkdir()
    lines = (case.data / "birds.train.jsonl").read_text().replace("word0", "word1")
    (tmp_path / "data" / "birds.train.jsonl").write_text(lines)
    shutil.copytree(case.finetuned, tmp_path / "model")
    other = text_case(tmp_path / "other", seed=5)
    shutil.copy(other.finetuned / "model.safetensors", tmp_path / "model")
    others = [
        TrainingCase(case.base, case.finetuned, tmp_path / "data", case.per_task),
        TrainingCase(case.base, tmp_path / "model", case.data, case.per_task),
    ]
    for each in others:
        found_message = message(InputError, lambda each=each: steps_of(each, output, checkpoint))
        assert "belongs to a training with other inputs or settings" in found_message


# --- the file itself --------------------------------------------------------------------------------------


def training_state(seed: int) -> TrainingState:
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
    trained = [array.tolist() for array in state.parameters.arrays().values()]
    sums = [
        state.step,
        state.adam.count,
        state.slope_product,
        state.rate_square,
        state.step_size,
        state.history,
    ]
    return [*trained, *moments, state.factors.tolist(), *sums]


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint, state, found = (
        TrainingCheckpoint(tmp_path / "a", 1, "run"),
        training_state(0),
        training_state(1),
    )
    checkpoint.restore(found)
    assert numbers(found) == numbers(training_state(1))
    checkpoint.save(state)
    checkpoint.restore(found)
    assert numbers(found) == numbers(state)


def test_a_state_is_saved_after_every_so_many_steps(tmp_path: Path) -> None:
    checkpoint, state = TrainingCheckpoint(tmp_path / "a", 3, "run"), training_state(0)
    found = []
    for state.step in range(1, 8):
        checkpoint.save(state)
        found.append(checkpoint.path.exists())
        checkpoint.remove()
    assert found == [False, False, True, False, False, True, False]


def test_a_damaged_state_is_refused_or_read_unchanged(tmp_path: Path) -> None:
    checkpoint, state = TrainingCheckpoint(tmp_path / "a", 1, "run"), training_state(0)
    checkpoint.save(state)
    whole, refused = checkpoint.path.read_bytes(), 0
    for offset in range(0, len(whole), 7):
        checkpoint.path.write_bytes(whole)
        flip_bit(checkpoint.path, offset, bit=offset % 8)
        found = training_state(1)
        with suppress(InputError):
            checkpoint.restore(found)
            assert numbers(found) == numbers(state)
            continue
        found_message = message(InputError, lambda found=found: checkpoint.restore(found))
        assert found_message.startswith(f"{checkpoint.path}: is damaged (")
        assert found_message.endswith("); delete it to start again")
        assert numbers(found) == numbers(training_state(1))
        refused += 1
    assert refused > len(whole) / 7 / 3


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_state_that_is_cut_short_is_refused(kept: int, tmp_path: Path) -> None:
    checkpoint = TrainingCheckpoint(tmp_path / "a", 1, "run")
    checkpoint.save(training_state(0))
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:kept])
    found_message = message(InputError, lambda: checkpoint.restore(training_state(1)))
    assert found_message.startswith(f"{checkpoint.path}: is damaged (")
    assert found_message.endswith("); delete it to start again")


def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    checkpoint = TrainingCheckpoint(tmp_path / "a", 1, "run")
    checkpoint.save(training_state(0))
    with np.load(checkpoint.path) as arrays:
        older = {name: arrays[name][:2] if name == "sums" else arrays[name] for name in arrays.files}
    with checkpoint.path.open("wb") as file:
        np.savez(file, **older)
    found_message = message(InputError, lambda: checkpoint.restore(training_state(1)))
    assert found_message == (
        f"{checkpoint.path}: is damaged (it holds 2 sums, expected 3: the file is from another version); "
        "delete it to start again"
    )


def test_the_text_of_a_run_tells_settings_and_inputs_apart() -> None:
    runs = [({"a": 1}, {}), ({"a": 2}, {}), ({}, {"a": 1}), ({"a": "1"}, {}), ({"b": 1}, {})]
    assert len({run_identity(*run) for run in runs}) == len(runs)
    assert run_identity({"a": 1, "b": 2}, {}) == run_identity({"b": 2, "a": 1}, {})
