"""Errors of a training: each by its message, and nothing is written."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.checkpoints import file_pair, message
from support.tiny_models import changed_state, texts, tiny_state, write_jsonl
from support.training_cases import Reports, TrainingCase, measured, text_case

from flexswitch.codecs.errors import FlexswitchError, InputError, TargetSizeError, UsageError
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.methods.settings import parse_settings


def refusal(kind: type[FlexswitchError], case: TrainingCase, folder: Path, *settings: str) -> str:
    """Returns the message of a training that is refused, and checks that it left nothing behind."""
    found_message = message(kind, lambda: case.train(folder / "out" / "birds.fsw", *settings))
    assert list((folder / "out").iterdir()) == []
    return found_message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["steps=0"], "setting steps=0 of flexswitch: expected a whole number of at least 1"),
        (["batch=0"], "setting batch=0 of flexswitch: expected a whole number of at least 1"),
        (["shards=-1"], "setting shards=-1 of flexswitch: expected a whole number of at least 1"),
        (["min_exemplars=0"], "setting min_exemplars=0 of flexswitch: expected a whole number of at least 1"),
        (
            ["scale_refit_steps=-1"],
            "setting scale_refit_steps=-1 of flexswitch: expected a whole number of at least 0",
        ),
        (
            ["augmentations=-1"],
            "setting augmentations=-1 of flexswitch: expected a whole number of at least 0",
        ),
        (["seed=-2"], "setting seed=-2 of flexswitch: expected a whole number of at least 0"),
        (["lambda=0"], "setting lambda=0 of flexswitch: expected a number above 0"),
        (["lambda=-1"], "setting lambda=-1 of flexswitch: expected a number above 0"),
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
            "setting norm_compensation=1.5 of flexswitch: expected a number from 0 to 1",
        ),
        (["bits="], "bits=: expected bit-widths from 1 to 8, joined by commas, such as 1,2,4,8"),
        (["bits=0,1"], "bits=0,1: expected bit-widths from 1 to 8, joined by commas, such as 1,2,4,8"),
        (["bits=9"], "bits=9: expected bit-widths from 1 to 8, joined by commas, such as 1,2,4,8"),
        (["bits=two"], "bits=two: expected bit-widths from 1 to 8, joined by commas, such as 1,2,4,8"),
        (["objective=best"], "setting objective=best of flexswitch: expected kl, mse, task or none"),
        (["densities=none"], "setting densities=none of flexswitch: expected learned, uniform or allocated"),
        (["granularity=row"], "setting granularity=row of flexswitch: expected tensor or rows"),
        (["precision=half"], "setting precision=half of flexswitch: expected float32 or bfloat16"),
        (["lambda=inf"], "setting lambda=inf of flexswitch: expected a number above 0"),
        (
            ["target_size=half"],
            "target size 'half': expected bytes (400KB), a share of float32 (0.5%) or bits per parameter (0.16bpp)",
        ),
    ],
)
def test_a_setting_outside_its_range_is_refused(
    settings: Sequence[str], expected: str, case: TrainingCase, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    assert refusal(UsageError, case, tmp_path, *settings) == expected


def test_a_size_and_a_lambda_exclude_each_other(tmp_path: Path) -> None:
    vector = file_pair(tmp_path, tiny_state(), changed_state(tiny_state(), 1))
    texts = ["lambda=1", "target_size=1KB"]
    parsed = parse_settings(texts)
    found_message = message(
        UsageError, lambda: compress(vector, tmp_path / "a.fsw", "a", "flexswitch", parsed, False)
    )
    assert found_message == "lambda=1.0: give an objective with data, and no target size"


def test_exemplars_are_needed(tmp_path: Path) -> None:
    vector = file_pair(tmp_path, tiny_state(), changed_state(tiny_state(), 1))
    found_message = message(
        UsageError, lambda: compress(vector, tmp_path / "a.fsw", "a", "flexswitch", {}, False)
    )
    assert found_message == (
        "flexswitch learns from examples: give --exemplars DIR and --base BASE, or --set objective=none"
    )
    assert not (tmp_path / "a.fsw").exists()


@pytest.mark.parametrize(("per_task", "found"), [(100, 40), (20, 20)])
def test_fewer_exemplars_than_the_least_are_refused(
    per_task: int, found: int, case: TrainingCase, tmp_path: Path
) -> None:
    found_message = refusal(InputError, replace(case, per_task=per_task), tmp_path, "min_exemplars=41")
    assert found_message == (
        f"{case.data / 'birds.train.jsonl'}: {found} exemplars, expected 41 or more; give more, or "
        f"allow fewer with --set min_exemplars={found}, or use none with --set objective=none"
    )


def test_as_many_exemplars_as_are_allowed_suffice(case: TrainingCase, tmp_path: Path) -> None:
    found = case.train(tmp_path / "birds.fsw", "min_exemplars=24", "steps=4")
    assert found.header.training.exemplars == 24


def test_a_task_without_a_file_of_exemplars_is_refused(case: TrainingCase, tmp_path: Path) -> None:
    found_message = message(InputError, lambda: case.train(tmp_path / "cities.fsw"))
    assert found_message.startswith(
        f"{case.data}: has no train file of the task 'cities'; expected cities.train with one of "
    )


def test_an_objective_of_labels_needs_labels(case: TrainingCase, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "birds.train.jsonl", texts("birds", 40, 1), None)
    found_message = refusal(InputError, replace(case, data=tmp_path), tmp_path, "objective=task")
    assert found_message == f"{path}: its examples have no labels; expected a field 'label' (or an array 'y')"


def test_another_base_is_refused(case: TrainingCase, tmp_path: Path) -> None:
    from flexswitch.merging.task_vectors.task_vector_file import write_task_vector

    file = tmp_path / "birds.tv.safetensors"
    write_task_vector(case.vector(), file, "birds", "float32", overwrite=True)
    other = text_case(tmp_path / "other", seed=3)
    state = {name: tensor + 1 for name, tensor in load_file(other.base / "model.safetensors").items()}
    save_file(state, other.base / "model.safetensors", {"format": "pt"})
    found_message = refusal(InputError, replace(other, finetuned=file), tmp_path)
    assert str(file) in found_message


NOTES = (
    "training starts again with steps 0.1 times as long",
    "training starts again with steps 0.03 times as long",
    "the initialisation is kept and only its scales are trained; use more steps",
)


@pytest.mark.deep
def test_steps_that_raise_the_loss_are_taken_again_as_shorter_ones_and_then_left_out(
    case: TrainingCase, tmp_path: Path
) -> None:
    # Which of these raise the loss depends on the processor.
    cases = ((2, 7000), (2, 8000), (1, 7000))
    assert sum(_tries(case, tmp_path / f"{steps}.{target}", steps, target) for steps, target in cases) > 0


def _tries(case: TrainingCase, folder: Path, steps: int, target: int) -> int:
    """Returns how often a training of so many steps was repeated with shorter ones, and checks its notes."""
    reports = Reports()
    found = case.train(folder / "birds.fsw", f"steps={steps}", f"target_size={target}", reports=reports)
    record, number, tries = found.header.training, r"([0-9.e+-]+)", len(reports.notes)
    for note, end in zip(reports.notes, NOTES, strict=False):
        losses = re.fullmatch(
            rf"{steps} steps change the loss on the exemplars from {number} to {number}: {re.escape(end)}",
            note,
        )
        assert losses is not None
        assert float(losses[2]) >= float(losses[1])
        assert float(losses[1]) == pytest.approx(record.before.divergence, rel=1e-3)
    assert [progress.step for progress in reports.steps] == min(tries + 1, 3) * list(range(1, steps + 1))
    assert record.after.divergence <= record.before.divergence
    assert record.after.divergence == pytest.approx(measured(case, found).divergence, rel=5e-3)
    return tries


def test_a_loss_that_is_not_finite_ends_the_training(case: TrainingCase, tmp_path: Path) -> None:
    spoiled = text_case(tmp_path / "spoiled")
    path = spoiled.finetuned / "model.safetensors"
    state = load_file(path)
    state["classifier.weight"] = 3e38 * state["classifier.weight"].sign()
    save_file(state, path, {"format": "pt"})
    found_message = refusal(InputError, spoiled, tmp_path)
    assert found_message == (
        "the loss is nan before the first step; the fine-tuned model's answers on the exemplars are not finite, or its weights "
        "are huge"
    )


@pytest.mark.parametrize(
    "above", [100, pytest.param(1, marks=pytest.mark.deep), pytest.param(400, marks=pytest.mark.deep)]
)
@pytest.mark.deep
def test_a_size_just_above_the_least_ends_in_an_artifact_or_in_one_line(
    above: int, case: TrainingCase, tmp_path: Path
) -> None:
    found_message = refusal(TargetSizeError, case, tmp_path, "target_size=300")
    found = re.fullmatch(
        rf"{re.escape(str(case.finetuned))}: target size 300 is 300 bytes, and the task's own tensors \(its head\) "
        r"with the header take ([0-9,]+) of them; ask for more than that",
        found_message,
    )
    assert found is not None
    target = int(found[1].replace(",", "")) + 1 + above
    settings = (f"target_size={target}", "steps=5")
    with suppress(TargetSizeError):
        case.train(tmp_path / "out" / "birds.fsw", *settings)
        assert (tmp_path / "out" / "birds.fsw").stat().st_size <= target
        return
    found_message = refusal(TargetSizeError, case, tmp_path, *settings)
    assert found_message == (
        f"{case.finetuned}: no thresholds bring the artifact to {target:,} bytes; ask for more"
    )
