"""Scales fitted anew at the end: at the first rate that lowers the loss, or left as they are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.training_cases import TrainingCase, text_case

from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.flex_switch import finalisation as finish
from flexswitch.merging.flex_switch.delta_rows import Quantisation
from flexswitch.merging.flex_switch.scale_refit import RATES


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> TrainingCase:
    return text_case(tmp_path_factory.mktemp("school"))


def scales_of(artifact: Artifact) -> list[float]:
    return [record.scale for record in artifact.header.tensors.values()]


@pytest.mark.parametrize("helps", [None, *range(len(RATES))])
def test_scales_are_fitted_at_the_first_rate_that_helps(
    helps: int | None, school: TrainingCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = school.learn(tmp_path / "left" / "birds.fsw", "lambda=0.01", "scale_refit_steps=0")
    plain, tried = finish.refit_scales, []

    def refit_scales(*given: Any) -> list[Quantisation]:
        *fitted, rate, each = given
        tried.append(rate)
        if rate == (None if helps is None else RATES[helps]):
            return plain(*fitted, RATES[0], each)
        return [replace(kept, scale=-kept.scale) for kept in fitted[1]]

    monkeypatch.setattr(finish, "refit_scales", refit_scales)
    found = school.learn(tmp_path / "birds.fsw", "lambda=0.01")
    assert tried == list(RATES if helps is None else RATES[: helps + 1])
    assert (scales_of(found) == scales_of(left)) == (helps is None)
    if helps is not None:
        assert found.header.training.after.divergence < left.header.training.after.divergence
