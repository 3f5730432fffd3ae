"""What a learned compression refuses, each by its message, and that nothing is written then."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.checkpoints import file_pair, message
from support.tiny_models import changed_state, texts, tiny_state, write_jsonl
from support.training_cases import Reports, TrainingCase, text_case

from flexswitch.codecs.errors import FlexswitchError, InputError, UsageError
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.plan import Progress
from flexswitch.merging.flex_switch.training_checkpoint import TrainingCheckpoint
from flexswitch.merging.flex_switch.training_data import TrainingData
from flexswitch.merging.methods.settings import parse_settings


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> TrainingCase:
    return text_case(tmp_path_factory.mktemp("school"))


def refusal(kind: type[FlexswitchError], school: TrainingCase, folder: Path, *settings: str) -> str:
    """Returns why a learning is refused, and checks that it left nothing behind."""
    told = message(kind, lambda: school.learn(folder / "out" / "birds.fsw", *settings))
    assert list((folder / "out").iterdir()) == []
    return told


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["steps=0"], "--set steps=0: Input should be greater than or equal to 1"),
        (["batch=0"], "--set batch=0: Input should be greater than or equal to 1"),
        (["shards=-1"], "--set shards=-1: Input should be greater than or equal to 1"),
        (["min_exemplars=0"], "--set min_exemplars=0: Input should be greater than or equal to 1"),
        (
            ["scale_refit_steps=-1"],
            "--set scale_refit_steps=-1: Input should be greater than or equal to 0",
        ),
        (
            ["augmentations=-1"],
            "--set augmentations=-1: Input should be greater than or equal to 0",
        ),
        (["seed=-2"], "--set seed=-2: Input should be greater than or equal to 0"),
        (["lambda=0"], "--set lambda=0: Input should be greater than 0"),
        (["lambda=-1"], "--set lambda=-1: Input should be greater than 0"),
        (
            ["lambda=1", "objective=none"],
            "lambda=1.0: give an objective with data, and no target size",
        ),
        (["densities=allocated"], "densities=allocated: expected learned or uniform with objective=kl"),
        (
            ["densities=learned", "objective=none"],
            "densities=learned: expected uniform or allocated with objective=none",
        ),
        (
            ["norm_compensation=0.7"],
            "norm_compensation=0.7: needs objective=none; training fits the scales",
        ),
        (
            ["norm_compensation=1.5", "objective=none"],
            "--set norm_compensation=1.5: Input should be less than or equal to 1",
        ),
        (["bits="], "bits=: expected bit-widths from 1 to 8, joined by commas, such as 1,2,4,8"),
        (["bits=0,1"], "bits=0,1: expected bit-widths from 1 to 8, joined by commas, such as 1,2,4,8"),
        (["bits=9"], "bits=9: expected bit-widths from 1 to 8, joined by commas, such as 1,2,4,8"),
        (["bits=two"], "bits=two: expected bit-widths from 1 to 8, joined by commas, such as 1,2,4,8"),
        (["objective=best"], "--set objective=best: Input should be 'kl', 'mse', 'task' or 'none'"),
        (["densities=none"], "--set densities=none: Input should be 'learned', 'uniform' or 'allocated'"),
        (["granularity=row"], "--set granularity=row: Input should be 'tensor' or 'rows'"),
        (["precision=half"], "--set precision=half: Input should be 'float32' or 'bfloat16'"),
        (["lambda=inf"], "--set lambda=inf: expected a finite number"),
        (
            ["target_size=half"],
            "target size 'half': expected bytes (400KB), a share of float32 (0.5%) or bits per parameter (0.16bpp)",
        ),
    ],
)
def test_a_setting_outside_its_range_is_refused(
    settings: Sequence[str], expected: str, school: TrainingCase, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    assert refusal(UsageError, school, tmp_path, *settings) == expected


def test_a_size_and_a_lambda_exclude_each_other(tmp_path: Path) -> None:
    vector = file_pair(tmp_path, tiny_state(), changed_state(tiny_state(), 1))
    texts = ["lambda=1", "target_size=1KB"]
    parsed = parse_settings(texts)
    told = message(UsageError, lambda: compress(vector, tmp_path / "a.fsw", "a", "flexswitch", parsed, False))
    assert told == "lambda=1.0: give an objective with data, and no target size"


def test_without_exemplars_nothing_is_learned(tmp_path: Path) -> None:
    vector = file_pair(tmp_path, tiny_state(), changed_state(tiny_state(), 1))
    told = message(UsageError, lambda: compress(vector, tmp_path / "a.fsw", "a", "flexswitch", {}, False))
    assert told == (
        "flexswitch learns from examples: give --exemplars DIR and --base BASE, or --set objective=none"
    )
    assert not (tmp_path / "a.fsw").exists()


@pytest.mark.parametrize(("per_task", "found"), [(100, 40), (20, 20)])
def test_fewer_exemplars_than_the_least_are_refused(
    per_task: int, found: int, school: TrainingCase, tmp_path: Path
) -> None:
    told = refusal(InputError, replace(school, per_task=per_task), tmp_path, "min_exemplars=41")
    assert told == (
        f"{school.data / 'birds.train.jsonl'}: {found} exemplars, expected 41 or more; give more, or "
        f"allow fewer with --set min_exemplars={found}, or use none with --set objective=none"
    )


def test_as_many_exemplars_as_are_allowed_suffice(school: TrainingCase, tmp_path: Path) -> None:
    found = school.learn(tmp_path / "birds.fsw", "min_exemplars=24")
    assert found.header.training.exemplars == 24


def test_a_task_without_a_file_of_exemplars_is_refused(school: TrainingCase, tmp_path: Path) -> None:
    told = message(InputError, lambda: school.learn(tmp_path / "cities.fsw"))
    assert told.startswith(
        f"{school.data}: has no train file of the task 'cities'; expected cities.train with one of "
    )


def test_labels_are_asked_for_where_they_are_learned_from(school: TrainingCase, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "birds.train.jsonl", texts("birds", 40, 1), None)
    told = refusal(InputError, replace(school, data=tmp_path), tmp_path, "objective=task")
    assert told == f"{path}: its examples carry no labels; expected a field 'label' (or an array 'y')"


def test_another_base_is_refused(school: TrainingCase, tmp_path: Path) -> None:
    from flexswitch.merging.task_vectors.task_vector_file import write_task_vector

    file = tmp_path / "birds.tv.safetensors"
    write_task_vector(school.vector(), file, "birds", "float32", overwrite=True)
    other = text_case(tmp_path / "other", seed=3)
    state = {name: tensor + 1 for name, tensor in load_file(other.base / "model.safetensors").items()}
    save_file(state, other.base / "model.safetensors", {"format": "pt"})
    told = refusal(InputError, replace(other, finetuned=file), tmp_path)
    assert str(file) in told


def test_a_loss_that_does_not_fall_is_refused(
    school: TrainingCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving, saved = TrainingCheckpoint(tmp_path / "out" / "birds.fsw.training", 1), []

    before: list[float] = []
    after: list[float] = []
    plain = TrainingData.loss

    def loss(lesson: TrainingData, each: ParallelMap) -> float:
        """Returns the loss, once all is learned ten times as much with each time that it is asked for."""
        (after if saved else before).append(10 * (before + after)[-1] if saved else plain(lesson, each))
        return (before + after)[-1]

    def on_step(progress: Progress) -> None:
        saved.append(saving.path.exists())

    monkeypatch.setattr(TrainingData, "loss", loss)
    output = tmp_path / "out" / "birds.fsw"
    told = message(InputError, lambda: school.learn(output, saving=saving, on_step=on_step))
    assert list((tmp_path / "out").iterdir()) == []  # the saved learning would only lead here again
    assert saved == [False, *[True] * 89]  # by long steps, by short ones, and by yet shorter ones
    number = r"[0-9.e+-]+"
    found = re.fullmatch(
        rf"{re.escape(str(school.finetuned))}: training did not help: the loss on the exemplars is "
        rf"({number}), and was ({number}) before; use more steps or exemplars, or the data-free allocation with "
        r"--set objective=none",
        told,
    )
    assert found is not None
    assert [found[1], found[2]] == [f"{after[-1]:.4g}", f"{before[-1]:.4g}"]


@pytest.mark.parametrize("spoilt", [1, 2, 3])
def test_steps_that_lead_away_are_taken_again_as_shorter_ones_and_then_left_out(
    spoilt: int, school: TrainingCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, heard = TrainingData.loss, Reports()
    last: dict[tuple[bool, int], float] = {}  # whether there were steps, and notes → the last loss

    def loss(lesson: TrainingData, each: ParallelMap) -> float:
        place = bool(heard.steps), len(heard.notes)
        last[place] = plain(lesson, each) + (9 if heard.steps and len(heard.notes) < spoilt else 0)
        return last[place]

    monkeypatch.setattr(TrainingData, "loss", loss)
    found = school.learn(tmp_path / "birds.fsw", "target_size=9KB", heard=heard)
    before = last[False, 0]
    assert heard.notes == [
        f"30 steps change the loss on the exemplars from {before:.4g} to {last[True, notes]:.4g}: {told}"
        for notes, told in enumerate(
            [
                "training starts again with steps 0.1 times as long",
                "training starts again with steps 0.03 times as long",
                "the initialisation is kept and only its scales are trained; use more steps",
            ][:spoilt]
        )
    ]
    assert len(heard.steps) == 30 * min(spoilt + 1, 3)
    assert last[True, spoilt] < before
    assert found.header.training.after.divergence == pytest.approx(last[True, spoilt], rel=5e-3)


def test_a_loss_that_is_not_finite_ends_the_learning(school: TrainingCase, tmp_path: Path) -> None:
    spoiled = text_case(tmp_path / "spoiled")
    path = spoiled.finetuned / "model.safetensors"
    state = load_file(path)
    state["classifier.weight"] = 3e38 * state["classifier.weight"].sign()
    save_file(state, path, {"format": "pt"})
    told = refusal(InputError, spoiled, tmp_path)
    assert told == (
        "the loss is nan in step 1; the fine-tuned model's answers on the exemplars are not finite, or its weights "
        "are huge"
    )


@pytest.mark.parametrize("above", [1, 100, 400])
def test_a_size_just_above_the_least_ends_in_an_artifact_or_in_one_line(
    above: int, school: TrainingCase, tmp_path: Path
) -> None:
    told = refusal(InputError, school, tmp_path, "target_size=300")
    found = re.fullmatch(
        rf"{re.escape(str(school.finetuned))}: target size 300 is 300 bytes, and the task's own tensors \(its head\) "
        r"with the header take ([0-9,]+) of them; ask for more than that",
        told,
    )
    assert found is not None
    target = int(found[1].replace(",", "")) + 1 + above
    settings = (f"target_size={target}", "steps=5")
    with suppress(InputError):
        school.learn(tmp_path / "out" / "birds.fsw", *settings)
        assert (tmp_path / "out" / "birds.fsw").stat().st_size <= target
        return
    told = refusal(InputError, school, tmp_path, *settings)
    assert "training did not help" in told or told == (
        f"{school.finetuned}: no thresholds bring the artifact to {target:,} bytes; ask for more"
    )
