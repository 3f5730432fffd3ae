"""The recorded relative error against plain float64 arithmetic on what the artifact decodes to."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import laws
from support.checkpoints import State, compressed, file_pair, memory_pair, use_small_blocks
from support.commands import Runner
from support.deltas import Floats, delta, dense, normal
from support.sparse_tensors import header

from flexswitch.codecs.format.quality_records import ErrorRecord, QualityRecord, TrainingRecord
from flexswitch.codecs.format.records import MethodRecord
from flexswitch.merging.compression import compress as compress_module
from flexswitch.merging.compression.delta import Squares
from flexswitch.merging.compression.quality_warning import quality_warning
from flexswitch.merging.compression.relative_error import error_record, squares_of
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import delta_tensor

STATE: State = {
    "a.weight": torch.from_numpy(normal((9, 13))),
    "b.weight": torch.from_numpy(normal((40,), 1)).to(torch.bfloat16),
    "c.small": torch.from_numpy(normal((6, 50), 5)),
    "d.wide": torch.from_numpy(normal((3, 70), 6)),
    "e.unchanged": torch.ones(5),
}
TUNED: State = {
    "a.weight": STATE["a.weight"] + torch.from_numpy(normal((9, 13), 2)) * 0.1,
    "b.weight": STATE["b.weight"] + torch.from_numpy(normal((40,), 3)).to(torch.bfloat16),
    "c.small": STATE["c.small"] + torch.from_numpy(normal((6, 50), 7)) * 1e-3,
    "d.wide": STATE["d.wide"] + torch.from_numpy(normal((3, 70), 8)) ** 3,
    "e.unchanged": torch.ones(5),
}
LOSSY: list[tuple[str, dict[str, Any]]] = [
    ("t-switch", {"drop": 0.6}),
    ("t-switch", {"drop": 0.0}),
    ("p-discard", {"drop": 0.7}),
    ("bin-discard", {"by": "random", "drop": 0.5}),
    ("dare", {"drop": 0.6}),
    ("dare", {"drop": 0.6, "bits": 16}),
    ("tvq", {"bits": 3}),
    ("bitdelta", {}),
    ("compeft", {"density": 0.1}),
    ("svd", {"rank": 2}),
    ("delta-come", {"entry_bits": 3.0}),
    ("ultradelta", {"drop": 0.6}),
    ("flexswitch", {"target_size": "2500"}),
    ("flexswitch", {"target_size": "1200", "densities": "allocated"}),
]
# float64 sums in another order, and four digits
CLOSE = 6e-4


def plain_error(pair: Any, artifact: Any) -> tuple[float, dict[str, float]]:
    """Returns the relative error over all tensors, and of each that changed."""
    decoded = ArtifactVector(artifact)
    errors, totals = {}, {}
    for name in pair.tensors:
        wanted = delta_tensor(pair, name).numpy().astype(np.float64)
        found = delta_tensor(decoded, name).numpy().astype(np.float64) if name in decoded.tensors else 0.0
        errors[name], totals[name] = float(np.sum((wanted - found) ** 2)), float(np.sum(wanted**2))
    each = {name: math.sqrt(errors[name] / totals[name]) for name in errors if totals[name]}
    return math.sqrt(sum(errors.values()) / sum(totals.values())), each


@pytest.mark.parametrize("small_blocks", [False, True])
@pytest.mark.parametrize(("method", "settings"), LOSSY)
def test_the_recorded_error_is_that_of_what_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, settings: dict[str, Any], small_blocks: bool
) -> None:
    if small_blocks:
        use_small_blocks(monkeypatch)
        monkeypatch.setattr(compress_module, "CACHED_ENTRIES", 20)
    pair = file_pair(tmp_path, STATE, TUNED)
    artifact = compressed(pair, tmp_path / "t.fsw", method, **settings)
    error = artifact.header.error
    assert error is not None
    whole, each = plain_error(pair, artifact)
    assert error.relative == pytest.approx(whole, rel=CLOSE)
    worst = sorted((name for name in each if each[name] > 0), key=lambda name: -each[name])[:3]
    assert list(error.worst) == worst
    assert list(error.worst.values()) == pytest.approx([each[name] for name in worst], rel=CLOSE)


@pytest.mark.parametrize(
    ("method", "settings"), [("lossless", {}), ("p-discard", {"drop": 0}), ("dare", {"drop": 0})]
)
def test_what_is_stored_exactly_has_no_error(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    artifact = compressed(file_pair(tmp_path, STATE, TUNED), tmp_path / "t.fsw", method, **settings)
    assert artifact.header.error == ErrorRecord(relative=0.0)


def test_a_model_that_did_not_change_has_no_error(tmp_path: Path) -> None:
    artifact = compressed(memory_pair(STATE, STATE), tmp_path / "t.fsw")
    assert artifact.header.error == ErrorRecord(relative=0.0)


@laws.settings(100)
@given(
    values=arrays(np.float32, st.integers(1, 70), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    method=st.sampled_from(["t-switch", "p-discard", "tvq", "bin-discard"]),
    block=st.sampled_from([8, 24, 1 << 20]),
)
def test_the_sums_of_squares_are_those_of_any_delta(values: Floats, method: str, block: int) -> None:
    given_delta = delta(values, block)
    made = get_method(method, "compression").load()(given_delta)
    found = squares_of(given_delta, made)
    wide, back = values.astype(np.float64), dense(made).astype(np.float64)
    total = float(np.sum(wide**2))
    assert found.total == pytest.approx(total, rel=1e-12)
    assert found.error == pytest.approx(float(np.sum((wide - back) ** 2)), rel=1e-9, abs=1e-12 * total)


def test_of_equal_errors_the_tensor_of_the_larger_norm_is_named_first() -> None:
    squares = {
        "small": Squares(1.0, 1.0),
        "large": Squares(4.0, 4.0),
        "unchanged": Squares(0.0, 0.0),
        "exact": Squares(0.0, 9.0),
        "half": Squares(1.0, 4.0),
        "third": Squares(1.0, 9.0),
    }
    found = error_record(squares)
    assert list(found.worst.items()) == [("large", 1.0), ("small", 1.0), ("half", 0.5)]
    assert found.relative == float(f"{math.sqrt(7 / 27):.4g}")


def test_compress_inspect_and_a_zoo_show_it(tmp_path: Path, flexswitch: Runner) -> None:
    file_pair(tmp_path, STATE, TUNED)
    made = tmp_path / "t.fsw"
    inputs = ("compress", tmp_path / "finetuned.safetensors", "--base", tmp_path / "base.safetensors")
    shown = flexswitch(*inputs, "-o", made).out
    document = json.loads(flexswitch("inspect", made, "--json").out)
    relative, worst = document["error"]["relative"], document["error"]["worst"]
    assert len(worst) == 3
    line = f"relative error {relative:g} of all tensors; worst: "
    line += ", ".join(f"{name} {found:g}" for name, found in worst.items())
    assert line in shown.splitlines()
    assert line in flexswitch("inspect", made).out.splitlines()
    again = json.loads(flexswitch(*inputs, "-o", made, "--overwrite", "--json").out)
    assert (again["relative_error"], again["worst_tensors"]) == (relative, worst)
    zoo = tmp_path / "zoo"
    flexswitch("pack", made, "-o", zoo)
    heading, _, row = flexswitch("inspect", zoo).out.splitlines()[1:4]
    assert heading.endswith("relative error")
    assert row.split()[-1] == f"{relative:.4f}"


TRAINED = TrainingRecord(
    exemplars=12,
    exemplars_sha256="ef" * 32,
    held_out=8,
    before=QualityRecord(divergence=0.25, agreement=0.5),
    after=QualityRecord(divergence=0.1, agreement=0.99, held_out_divergence=0.5, held_out_agreement=0.9),
)
WITHOUT_HELD_OUT = TRAINED.model_copy(
    update={"held_out": 0, "after": QualityRecord(divergence=0.1, agreement=0.99)}
)


@pytest.mark.parametrize(
    ("relative", "training", "objective", "expected"),
    [
        (0.5, None, "none", None),
        (0.5001, None, "none", "the relative error 0.5001 is above 0.5"),
        (None, None, "none", None),
        (0.9, TRAINED, "kl", "on 8 held-out examples only 90.0 % of the answers"),
        (0.1, TRAINED, "kl", "on 8 held-out examples only 90.0 % of the answers"),
        (0.9, WITHOUT_HELD_OUT, "kl", None),
        (0.9, WITHOUT_HELD_OUT, "mse", "the relative error 0.9 is above 0.5"),
    ],
)
def test_a_warning_goes_by_measured_answers_and_else_by_the_error(
    relative: float | None, training: TrainingRecord | None, objective: str, expected: str | None
) -> None:
    method = MethodRecord(name="flexswitch", settings={"objective": objective})
    error = None if relative is None else ErrorRecord(relative=relative)
    found = quality_warning(header(method=method, training=training, error=error))
    assert found == expected or (found is not None and expected is not None and expected in found)


def test_compress_and_inspect_warn_of_a_large_error_only(tmp_path: Path, flexswitch: Runner) -> None:
    file_pair(tmp_path, STATE, TUNED)
    inputs = ("compress", tmp_path / "finetuned.safetensors", "--base", tmp_path / "base.safetensors")
    for drop, warned in (("0.5", False), ("0.99", True)):
        made = tmp_path / f"{drop}.fsw"
        outcome = flexswitch(*inputs, "-o", made, "--method", "p-discard", "--set", f"drop={drop}")
        assert (outcome.status, "warning: the relative error" in outcome.err) == (0, warned)
        assert ("warning: the relative error" in flexswitch("inspect", made).out) == warned
