"""FlexSwitch with every setting; nothing but its inputs decides the bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.training_cases import Reports, TrainingCase, measured

from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.flex_switch.compression_task import read_compression_task
from flexswitch.merging.flex_switch.finalisation import TrainingRun, TrainingSettings
from flexswitch.merging.flex_switch.gated_model import GatedModel
from flexswitch.merging.flex_switch.initialisation import (
    allocated,
    best_norm_compensation,
    relative,
    uniform,
)
from flexswitch.merging.flex_switch.training import RECORD_SPARE, likely_record
from flexswitch.merging.flex_switch.training_data import DataSettings, open_training_data
from flexswitch.merging.task_vectors.task_vector_file import write_task_vector
from flexswitch.merging.zoos.pack import Form, create_zoo

DEEP = pytest.mark.deep
STEPS = 16  # of training_cases.FEW


# --- nothing but the inputs decides -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jobs", "threads"),
    [(3, 2), pytest.param(1, 2, marks=DEEP), pytest.param(2, 1, marks=DEEP), pytest.param(1, 1, marks=DEEP)],
)
@pytest.mark.deep
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    jobs: int, threads: int, case: TrainingCase, trained: Artifact, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = case.train(tmp_path / "birds.fsw", jobs=jobs)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found.path.read_bytes() == trained.path.read_bytes()


@pytest.mark.deep
def test_another_seed_gives_another_artifact(case: TrainingCase, trained: Artifact, tmp_path: Path) -> None:
    other = case.train(tmp_path / "birds.fsw", "seed=1", "target_size=6KB")
    assert other.header.training.exemplars_sha256 != trained.header.training.exemplars_sha256
    assert other.header.tensors != trained.header.tensors


def test_a_task_vector_file_gives_the_same_artifact_as_its_checkpoints(
    case: TrainingCase, trained: Artifact, tmp_path: Path
) -> None:
    file = tmp_path / "birds.tv.safetensors"
    write_task_vector(case.vector(), file, "birds", "float32", overwrite=True)
    found = TrainingCase(case.base, file, case.data, case.per_task).train(tmp_path / "birds.fsw")
    assert found.path.read_bytes() == trained.path.read_bytes()


# --- what is written and recorded -------------------------------------------------------------------------


def test_the_training_is_recorded(case: TrainingCase, trained: Artifact) -> None:
    record = trained.header.training
    assert (record.exemplars, record.held_out) == (24, 16)
    assert record.after.divergence <= record.before.divergence
    assert record.after.held_out_divergence is not None
    steps = [point[0] for point in record.curve]
    assert (steps[-1], steps) == (STEPS, sorted(steps))
    settings = trained.header.method.settings
    assert (trained.header.method.name, settings["objective"], settings["target_size"]) == (
        "flexswitch",
        "kl",
        "7KB",
    )
    found = measured(case, trained)
    assert found.divergence == pytest.approx(record.after.divergence, rel=2e-3)
    assert trained.path.stat().st_size <= 7000


def test_every_step_is_reported(trained: Artifact, reports: Reports) -> None:
    assert [progress.step for progress in reports.steps] == list(range(1, STEPS + 1))
    assert all(np.isfinite([progress.loss, progress.bits]).all() for progress in reports.steps)


def test_packing_with_small_effort_keeps_the_record_and_the_size(trained: Artifact, tmp_path: Path) -> None:
    create_zoo(tmp_path / "zoo", [trained.path], Form(effort="small"), None, False, lambda task: None)
    packed = open_zoo(tmp_path / "zoo")["birds"]
    assert packed.header.training == trained.header.training
    assert packed.path.stat().st_size <= 7000


@pytest.mark.parametrize(("bits", "allowed"), [("3,2", {2, 3}), pytest.param("1", {1}, marks=DEEP)])
def test_only_the_bit_widths_that_are_asked_for_are_stored(
    bits: str, allowed: set[int], case: TrainingCase, tmp_path: Path
) -> None:
    found = case.train(tmp_path / "birds.fsw", f"bits={bits}")
    assert {record.bits for record in found.header.tensors.values()} <= allowed
    assert found.header.training.after.divergence <= found.header.training.before.divergence


@DEEP
def test_a_larger_lambda_gives_a_smaller_artifact(case: TrainingCase, tmp_path: Path) -> None:
    sizes = []
    for lambda_ in ("0.001", "1000"):
        found = case.train(tmp_path / "birds.fsw", f"lambda={lambda_}")
        assert found.header.method.settings["lambda"] == float(lambda_)
        assert "target_size" not in found.header.method.settings
        sizes.append(found.path.stat().st_size)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    "settings",
    [
        ("shards=1", "scale_refit_steps=0", "effort=fast"),
        *(
            pytest.param((setting, "target_size=9KB"), marks=DEEP)
            for setting in (
                "granularity=rows",
                "densities=uniform",
                "shards=1",
                "scale_refit_steps=0",
                "effort=fast",
            )
        ),
    ],
)
def test_other_settings_lower_the_divergence_too(
    settings: tuple[str, ...], case: TrainingCase, tmp_path: Path
) -> None:
    found = case.train(tmp_path / "birds.fsw", *settings)
    assert found.header.training.after.divergence <= found.header.training.before.divergence
    assert found.path.stat().st_size <= (9000 if "target_size=9KB" in settings else 7000)
    for setting in settings:
        name, value = setting.split("=")
        assert str(found.header.method.settings[name]) == value


@pytest.mark.parametrize(
    ("target", "granularity"),
    [
        (9500, "rows"),
        pytest.param(5500, "rows", marks=DEEP),
        pytest.param(5500, "tensor", marks=DEEP),
        pytest.param(9500, "tensor", marks=DEEP),
    ],
)
def test_a_small_size_is_met_with_the_record_in_the_file(
    target: int, granularity: str, case: TrainingCase, tmp_path: Path
) -> None:
    reports = Reports()
    settings = (f"target_size={target}", f"granularity={granularity}")
    found = case.train(tmp_path / "birds.fsw", *settings, reports=reports)
    assert 0.97 * target <= found.path.stat().st_size <= target
    # Whether the steps help at once depends on how a processor rounds.
    assert all("training starts again with steps 0.1 times as long" in note for note in reports.notes)
    record = found.header.training
    assert record.after.divergence == pytest.approx(measured(case, found).divergence, rel=2e-3)


@DEEP
def test_steps_in_bfloat16_lower_the_divergence_too(case: TrainingCase, tmp_path: Path) -> None:
    found, exact = (
        case.train(
            tmp_path / precision / "birds.fsw", f"precision={precision}", f"target_size={target}", "steps=8"
        )
        for precision, target in (("bfloat16", "9KB"), ("float32", "9000"))  # records of the same length
    )
    record = found.header.training
    assert record.before == exact.header.training.before  # what is judged is in float32
    assert record.after.divergence < 0.8 * record.before.divergence
    assert record.curve != exact.header.training.curve
    assert measured(case, found).divergence == pytest.approx(record.after.divergence, rel=2e-3)


def test_without_augmentations_the_artifact_differs_and_the_exemplars_stay(
    case: TrainingCase, trained: Artifact, tmp_path: Path
) -> None:
    found = case.train(tmp_path / "birds.fsw", "augmentations=0", "target_size=9KB", "steps=8")
    record = found.header.training
    assert (record.exemplars, record.exemplars_sha256) == (24, trained.header.training.exemplars_sha256)
    assert record.after.divergence <= record.before.divergence
    assert found.header.tensors != trained.header.tensors


@pytest.mark.parametrize("target", [5500, pytest.param(9500, marks=DEEP), pytest.param(14000, marks=DEEP)])
@pytest.mark.deep
def test_training_starts_from_the_initialisation_of_least_loss(
    target: int, case: TrainingCase, tmp_path: Path
) -> None:
    """Candidates: the same share of every tensor; the allocation by relative errors, and by absolute ones."""
    found = case.train(tmp_path / "birds.fsw", f"target_size={target}", "steps=4")
    assert found.header.training.before.divergence == pytest.approx(
        best_start_divergence(case, found, target), rel=1e-3
    )


def best_start_divergence(case: TrainingCase, artifact: Artifact, target: int) -> float:
    """Returns the divergence of the best of three candidates, each at its best norm compensation."""
    vector, bits = case.vector(), np.array([1, 2, 4, 8])
    with parallel_map(1) as each:
        settings = DataSettings("birds", case.inputs(), "kl", 0, 8, 0, "float32")
        data = open_training_data(vector, settings, each)
        header = artifact.header.model_copy(update={"training": None})
        task = read_compression_task(vector, header, bits, "small", each)
        schedule = TrainingSettings(target, 0.0, 4, False, False, 8, 1, 4, 0)
        run = TrainingRun(task, data, GatedModel(data.model, task.tensors, data.places, 1), schedule)
        sizer, room, tables = task.sizer(), task.payload_bits(target), relative(task.tensors, task.tables)
        by_relative, factors = allocated(task.tensors, tables, room, sizer)
        candidates = [
            uniform(task.tensors, tables, bits, room, factors),
            by_relative,
            allocated(task.tensors, task.tables, room, sizer)[0],
        ]
        found = [best_norm_compensation(tables, start, run.loss) for start in candidates]
        assert len({loss for loss, _ in found}) == 3
        _, best = min(found, key=lambda each: each[0])
        run.loss(best)
        return run.loss(task.fill(best, task.sizer(likely_record(run)), target - RECORD_SPARE)[0])


@DEEP
def test_uniform_gates_keep_about_the_same_share_of_every_large_tensor(
    case: TrainingCase, tmp_path: Path
) -> None:
    found = case.train(tmp_path / "birds.fsw", "densities=uniform", "bits=1", "steps=30")
    records = [
        each
        for name, each in found.header.tensors.items()
        if each.layout.entries > 1000 and "embed" not in name
    ]
    shares = [record.kept / record.layout.entries for record in records]
    assert len(shares) > 8
    assert max(shares) < 1.5 * min(shares)
