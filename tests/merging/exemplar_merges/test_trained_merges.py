"""Merges that are trained: what improves is kept, an interrupted training continues, and wrong inputs are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import assert_same_state, message
from support.perceptrons import Perceptrons, perceptrons

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.training_file import TrainingFile

SETTINGS: dict[str, dict[str, Any]] = {
    "adamerging": {"steps": 9, "rate": 0.05, "batch": 7},
    "concrete-am": {"mask_steps": 4, "steps": 4, "batch": 7, "mask_rate": 0.1, "rate": 0.05},
    "concrete-ta": {"steps": 8, "batch": 7, "rate": 0.2},
    "df-merge": {"points": 4, "steps": 5, "fisher_exemplars": 3},
}


class StopError(Exception):
    """Stands for whatever stops a process."""


@pytest.fixture(scope="module")
def case() -> Perceptrons:
    return perceptrons(3, count=20)


def test_a_training_that_lowers_the_entropy_is_kept_and_reported(case: Perceptrons) -> None:
    notes: list[str] = []
    _, report = case.merged("adamerging", {"steps": 30, "rate": 0.05}, notes=notes)
    assert report["entropy after"] < report["entropy before"]
    assert report["held out"] == {"a": 4, "b": 4, "c": 4}
    assert report["exemplars"] == {"a": 20, "b": 21, "c": 22}
    assert all(value != 0.3 for value in report["mean coefficients"].values())
    assert notes == []


def test_a_training_that_does_not_lower_it_keeps_the_start_with_a_note(case: Perceptrons) -> None:
    notes: list[str] = []
    found, report = case.merged(
        "adamerging", {"steps": 1, "rate": 0.5, "clamp": False, "start": 1.0}, notes=notes
    )
    assert report["mean coefficients"] == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert report["entropy after"] == report["entropy before"]
    assert notes == [
        "the entropy of held-out answers is 0.7001 after the training and 0.6001 before: the start is kept; use "
        "more exemplars, or a smaller --set rate"
    ]
    for name, tensor in case.base.items():
        summed = tensor + sum(state[name] - tensor for state in case.states)
        torch.testing.assert_close(found[name], summed)


@pytest.mark.parametrize(
    "method", ["adamerging", *(pytest.param(name, marks=pytest.mark.deep) for name in list(SETTINGS)[1:])]
)
def test_an_interrupted_training_continues_to_the_same_bytes(
    case: Perceptrons, method: str, tmp_path: Path
) -> None:
    calls: list[int] = []

    def count(step: int, state: str) -> None:
        calls.append(step)

    whole, expected = case.merged(method, SETTINGS[method], on_step=count)
    steps = len(calls)
    for at in (4, 8):  # of concrete-am, while the mask is trained and after it

        def stop(step: int, state: str, at: int = at) -> None:
            calls.append(step)
            if len(calls) == at:
                raise StopError

        file = TrainingFile(tmp_path / f"{at}.training", 2, "run")
        calls.clear()
        with pytest.raises(StopError):
            case.merged(method, SETTINGS[method], training=file, on_step=stop)
        calls.clear()
        found, report = case.merged(method, SETTINGS[method], training=file, on_step=count)
        assert len(calls) == steps - (at - 1) // 2 * 2
        assert_same_state(found, whole)
        assert report == expected


def test_a_stored_training_of_another_run_is_refused(case: Perceptrons, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        case.merged(
            "adamerging", {"steps": 3}, training=TrainingFile(tmp_path / "a", 1, "one"), on_step=_stop_at_two
        )
    other = TrainingFile(tmp_path / "a", 1, "two")
    assert message(InputError, lambda: case.merged("adamerging", training=other)).startswith(
        f"{tmp_path / 'a'}: belongs to a training with other inputs or settings"
    )


def _stop_at_two(step: int, state: str) -> None:
    if step == 2:
        raise StopError


def test_too_few_exemplars_are_refused() -> None:
    few = perceptrons(2, count=4)
    assert message(InputError, lambda: few.merged("adamerging")) == (
        "has 4 examples, expected 5 or more, as every fifth is held out"
    )


def test_df_merge_holds_out_no_example() -> None:
    one = perceptrons(2, count=1)
    _, report = one.merged("df-merge", {"points": 2, "steps": 0, "fisher_exemplars": 1})
    assert report["exemplars"] == {"a": 1, "b": 2}


def test_outputs_that_are_no_classes_are_refused() -> None:
    case = perceptrons(1)
    case.states[0]["head.weight"] = case.states[0]["head.weight"][:1]
    for method in ("adamerging", "df-merge", "fisher"):
        assert message(InputError, lambda method=method: case.merged(method)) == (
            "finetuned: its outputs are values, but this merge needs a classifier"
        )
    case.merged("regmean")


LEARNED = ["adamerging", "adamerging-plus", "concrete-am", "concrete-ta", "df-merge", "fisher"]


@pytest.mark.parametrize("method", [*LEARNED, "regmean"])
@pytest.mark.parametrize("row", [0, 4], ids=["learned from", "held out"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_exemplars_that_are_not_finite_are_refused(method: str, row: int, value: float) -> None:
    """And never taken for a reason to keep the base, or the start."""
    case = perceptrons(2)
    case.inputs[1][row, 2] = value
    assert message(InputError, lambda: case.merged(method, SETTINGS.get(method))) == (
        "finetuned: exemplars of task 'b' hold NaN or infinite numbers"
    )


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_heads_that_are_not_finite_are_refused(method: str, value: float) -> None:
    case = perceptrons(2)
    case.states[1]["head.weight"][0, 0] = value
    assert message(InputError, lambda: case.merged(method, SETTINGS.get(method))).startswith(
        "finetuned: the answers of task 'b' are not finite numbers; its weights"
    )


@pytest.mark.parametrize("method", ["df-merge", "fisher"])
def test_gradients_beyond_float32_are_refused(method: str) -> None:
    case = perceptrons(2)
    case.inputs[1][:] = 0
    case.inputs[1][:, 0] = np.random.default_rng(0).normal(size=len(case.inputs[1])) * 1e-20
    for state in (case.base, *case.states):
        state["first.weight"][:, 0] = 3e19
    case.states[1]["head.weight"] *= 1e20
    found = message(InputError, lambda: case.merged(method, SETTINGS.get(method)))
    assert found.startswith("tensor 'first.bias': the squared gradients of task 'b' are beyond float32;")


@pytest.mark.parametrize("label", [7, -1])
def test_labels_of_no_class_are_refused(label: int) -> None:
    case = perceptrons(2)
    case.labels[0][3] = label
    found = message(InputError, lambda: case.merged("df-merge", SETTINGS["df-merge"]))
    assert found.endswith("expected the number of one of the model's 2 classes, counted from 0"), found
    assert f"{label}" in found
