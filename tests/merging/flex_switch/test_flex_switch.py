"""FlexSwitch with every setting, and that nothing but its inputs decides the bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import (
    texts,
)
from support.training_cases import Reports, TrainingCase, measured, text_case

from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.flex_switch import training as course
from flexswitch.merging.flex_switch import training_data as lesson_module
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation
from flexswitch.merging.flex_switch.objective import Objective
from flexswitch.merging.flex_switch.rate_distortion import RateDistortionTable
from flexswitch.merging.models.examples import Batch, Examples, Inputs
from flexswitch.merging.task_vectors.task_vector_file import write_task_vector
from flexswitch.merging.zoos.pack import Form, create_zoo


class StopError(Exception):
    """Ends a learning once all that is looked at has been seen."""


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> TrainingCase:
    return text_case(tmp_path_factory.mktemp("school"))


@pytest.fixture(scope="module")
def learned(school: TrainingCase, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return school.learn(tmp_path_factory.mktemp("learned") / "birds.fsw")


# --- nothing but the inputs decides -----------------------------------------------------------------------


@pytest.mark.parametrize(("jobs", "threads"), [(1, 2), (2, 1), (3, 1)])
def test_the_bytes_depend_on_no_number_of_threads(
    jobs: int, threads: int, school: TrainingCase, learned: Artifact, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = school.learn(tmp_path / "birds.fsw", jobs=jobs)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found.path.read_bytes() == learned.path.read_bytes()


def test_another_seed_learns_something_else_and_the_same_one_the_same(
    school: TrainingCase, learned: Artifact, tmp_path: Path
) -> None:
    again = school.learn(tmp_path / "birds.fsw")
    assert again.path.read_bytes() == learned.path.read_bytes()
    other = school.learn(tmp_path / "birds.fsw", "seed=1")
    assert other.header.training.exemplars_sha256 != learned.header.training.exemplars_sha256
    assert other.header.tensors != learned.header.tensors


def test_a_task_vector_file_learns_the_same_as_its_checkpoints(
    school: TrainingCase, learned: Artifact, tmp_path: Path
) -> None:
    file = tmp_path / "birds.tv.safetensors"
    write_task_vector(school.vector(), file, "birds", "float32", overwrite=True)
    found = TrainingCase(school.base, file, school.data, school.per_task).learn(tmp_path / "birds.fsw")
    assert found.path.read_bytes() == learned.path.read_bytes()


# --- what is written and recorded -------------------------------------------------------------------------


def test_what_was_learned_is_recorded(school: TrainingCase, learned: Artifact) -> None:
    record = learned.header.training
    assert (record.exemplars, record.held_out) == (24, 16)
    assert record.after.divergence < record.before.divergence
    assert record.after.held_out_divergence < record.before.held_out_divergence
    steps = [point[0] for point in record.curve]
    assert (steps[-1], steps) == (30, sorted(steps))
    settings = learned.header.method.settings
    assert (learned.header.method.name, settings["objective"], settings["target_size"]) == (
        "flexswitch",
        "kl",
        "5KB",
    )
    found = measured(school, learned)
    assert found.divergence == pytest.approx(record.after.divergence, rel=2e-3)
    assert learned.path.stat().st_size <= 5000


def test_every_step_is_told(school: TrainingCase, tmp_path: Path) -> None:
    heard = Reports()
    school.learn(tmp_path / "birds.fsw", heard=heard)
    assert [progress.step for progress in heard.steps] == list(range(1, 31))
    assert all(np.isfinite([progress.loss, progress.bits]).all() for progress in heard.steps)


def test_packing_it_as_small_as_it_was_made_keeps_the_record_and_the_size(
    learned: Artifact, tmp_path: Path
) -> None:
    create_zoo(tmp_path / "zoo", [learned.path], Form(effort="small"), None, False, lambda task: None)
    packed = open_zoo(tmp_path / "zoo")["birds"]
    assert packed.header.training == learned.header.training
    assert packed.path.stat().st_size <= 5000


def test_only_the_bit_widths_that_are_asked_for_are_stored(school: TrainingCase, tmp_path: Path) -> None:
    for bits, allowed in (("1", {1}), ("3,2", {2, 3})):
        found = school.learn(tmp_path / "birds.fsw", f"bits={bits}", "steps=60")
        assert {record.bits for record in found.header.tensors.values()} <= allowed
        assert found.header.training.after.divergence < found.header.training.before.divergence


def test_a_larger_lambda_gives_a_smaller_artifact(school: TrainingCase, tmp_path: Path) -> None:
    sizes = []
    for lambda_ in ("0.01", "30"):
        found = school.learn(tmp_path / "birds.fsw", f"lambda={lambda_}")
        assert found.header.method.settings["lambda"] == float(lambda_)
        assert "target_size" not in found.header.method.settings
        sizes.append(found.path.stat().st_size)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    "setting", ["granularity=rows", "densities=uniform", "shards=1", "scale_refit_steps=0", "effort=fast"]
)
def test_other_settings_learn_too(setting: str, school: TrainingCase, tmp_path: Path) -> None:
    found = school.learn(tmp_path / "birds.fsw", setting)
    assert found.header.training.after.divergence < found.header.training.before.divergence
    assert found.path.stat().st_size <= 5000
    name, value = setting.split("=")
    assert str(found.header.method.settings[name]) == value


@pytest.mark.parametrize("target", [5000, 9000])
@pytest.mark.parametrize("granularity", ["tensor", "rows"])
def test_a_small_size_is_met_with_the_record_in_the_file(
    target: int, granularity: str, school: TrainingCase, tmp_path: Path
) -> None:
    heard = Reports()
    settings = (f"target_size={target}", f"granularity={granularity}")
    found = school.learn(tmp_path / "birds.fsw", *settings, heard=heard)
    assert 0.97 * target <= found.path.stat().st_size <= target
    assert heard.notes == []
    record = found.header.training
    assert record.after.divergence == pytest.approx(measured(school, found).divergence, rel=2e-3)


def test_steps_in_bfloat16_learn_too(school: TrainingCase, tmp_path: Path) -> None:
    found, exact = (
        school.learn(tmp_path / precision / "birds.fsw", f"precision={precision}", f"target_size={target}")
        for precision, target in (("bfloat16", "5KB"), ("float32", "5000"))  # records of the same length
    )
    record = found.header.training
    assert record.before == exact.header.training.before  # what is judged is in float32
    assert record.after.divergence < 0.8 * record.before.divergence
    assert record.curve != exact.header.training.curve
    assert measured(school, found).divergence == pytest.approx(record.after.divergence, rel=2e-3)


def test_without_crossings_only_the_exemplars_are_learned_from(
    school: TrainingCase, learned: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    plain = Objective.batch

    def batch(objective: Objective, examples: Examples, rows: Sequence[int]) -> Batch:
        seen.extend(examples.inputs[row] for row in rows)
        return plain(objective, examples, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "batch", batch)
        found = school.learn(tmp_path / "birds.fsw", "augmentations=0", "steps=60")
    assert set(seen) <= set(texts("birds", 40, 1))
    record = found.header.training
    assert (record.exemplars, record.exemplars_sha256) == (24, learned.header.training.exemplars_sha256)
    assert record.after.divergence < record.before.divergence
    assert found.header.tensors != learned.header.tensors


def test_with_crossings_others_are_learned_from_too_but_not_judged_by(
    school: TrainingCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    plain = lesson_module.augmented

    def augment(inputs: Inputs, count: int, seed: int) -> Inputs:
        counts.append(count)
        return plain(inputs, count, seed)

    monkeypatch.setattr(lesson_module, "augment", augment)
    found = school.learn(tmp_path / "birds.fsw", "augmentations=5", "steps=15")
    assert counts == [5 * 24]
    assert found.header.training.exemplars == 24
    assert found.header.training.after.divergence == pytest.approx(
        measured(school, found).divergence, rel=2e-3
    )


@pytest.mark.parametrize("nearer", ["uniform", "relative", "absolute"])
def test_learning_starts_from_what_has_the_smallest_loss(
    nearer: str, school: TrainingCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same share of every unit, and the allocations by errors over each one's mean square, and as such."""
    starts: dict[str, list[Quantisation]] = {}
    firsts: list[list[Quantisation]] = []
    losses = iter(
        loss  # of a start's first power, then of one larger and one smaller
        for name in ("uniform", "relative", "absolute")
        for loss in ([1.0, 3.0, 3.0] if name == nearer else [2.0, 4.0, 4.0])
    )
    plain, plain_uniform = course.allocated, course.uniform

    def allocated(units: list[DeltaRows], choices: list[RateDistortionTable], *rest: Any) -> Any:
        name = "absolute" if "relative" in starts else "relative"
        for unit, each in zip(units, choices, strict=True):
            nothing = float(np.square(unit.delta.astype(np.float64)).sum())
            size = unit.rms**2 if name == "relative" else 1.0
            assert each.errors[0] == pytest.approx(nothing / size, rel=1e-5)
        found = plain(units, choices, *rest)
        starts[name] = found[0]
        return found

    def uniform(*given: Any) -> Any:
        starts["uniform"] = plain_uniform(*given)
        return starts["uniform"]

    def initial_parameters(
        units: list[DeltaRows], choices: list[RateDistortionTable], kept: list[Quantisation], *rest: Any
    ) -> None:
        firsts.append(kept)
        raise StopError

    monkeypatch.setattr(course, "allocated", allocated)
    monkeypatch.setattr(course, "uniform", uniform)
    monkeypatch.setattr(course, "initial_parameters", initial_parameters)
    monkeypatch.setattr(lesson_module.TrainingData, "loss", lambda lesson, each: next(losses, 1.0))
    with pytest.raises(StopError):
        school.learn(tmp_path / "birds.fsw")
    thresholds = {name: [each.thresholds[0] for each in start] for name, start in starts.items()}
    fitted = np.array([each.thresholds[0] for each in firsts[0]]) / np.array(thresholds[nearer])
    assert fitted == pytest.approx(fitted[0], rel=1e-5)  # to the size, by one factor
    assert 0.8 < fitted[0] < 1.25
    assert len({tuple(each) for each in thresholds.values()}) == 3


def test_uniform_gates_keep_about_the_same_share_of_every_large_tensor(
    school: TrainingCase, tmp_path: Path
) -> None:
    found = school.learn(tmp_path / "birds.fsw", "densities=uniform", "bits=1")
    records = [
        each
        for name, each in found.header.tensors.items()
        if each.layout.entries > 1000 and "embed" not in name
    ]
    shares = [record.kept / record.layout.entries for record in records]
    assert len(shares) > 8
    assert max(shares) < 1.5 * min(shares)
