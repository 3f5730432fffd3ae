"""A finite weight never becomes infinite: where float16 has no room for it, the work is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import State, compressed, file_pair, memory_pair, message
from torch import nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.add_task import add_task
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.rounding import rounded

ADVICE = "use --dtype bfloat16, or the model in bfloat16"
MESSAGE = "tensor 'layer.weight': the value {} is beyond float16, whose largest is 65504; " + ADVICE


def states(dtype: torch.dtype, weight: float = 60000.0, delta: float = 8000.0) -> tuple[State, State]:
    base = torch.ones(6, 6)
    base[4, 2] = weight
    tuned = base.clone()
    tuned[4, 2] += delta
    bias = torch.zeros(6)
    return (
        {"layer.bias": bias.to(dtype), "layer.weight": base.to(dtype)},
        {"layer.bias": bias.clone(), "layer.weight": tuned},
    )


def test_half_a_model_that_does_not_fit_into_float16_is_refused_by_every_way_there_is(tmp_path: Path) -> None:
    base, tuned = states(torch.float16)
    artifact = compressed(file_pair(tmp_path, base, tuned), tmp_path / "t.fsw", "p-discard", drop=0.0)
    path, module = tmp_path / "base.safetensors", nn.Module()
    module.layer = nn.Linear(6, 6).half()
    module.load_state_dict(base)
    options: dict[str, Any] = {"base": path, "output": tmp_path / "out"}
    batch, weights = torch.ones(2, 6, dtype=torch.float16), torch.ones(2, 1)

    def switched(engine: Any) -> Callable[[], object]:
        net = nn.Sequential(nn.Linear(6, 6)).half()
        net.load_state_dict({"0.bias": base["layer.bias"], "0.weight": base["layer.weight"]})
        names = {f"layer.{part}": f"0.{part}" for part in ("weight", "bias")}
        model = SwitchedModel(net, {"t": artifact}, engine=engine, rename=names.__getitem__, check_base=False)
        return lambda: model(batch, weights=weights)

    ways: dict[str, Callable[[], object]] = {
        "merge --task": lambda: merge([artifact.path], **options, task="task"),
        "merge --method": lambda: merge([artifact.path], **options, method="average"),
        "a checkpoint": lambda: merge([tmp_path / "finetuned.safetensors"], **options, task="finetuned"),
        "restore": lambda: dict(restore(path, artifact)),
        "add_task": lambda: add_task(module.state_dict(), artifact),
        "grouped": switched("grouped"),
        "merged": switched("merged"),
    }
    for name, way in ways.items():
        assert (name, message(InputError, way)) == (name, MESSAGE.format(68000))
    assert not (tmp_path / "out").exists()
    merge([artifact.path], **options, task="task", dtype="bfloat16")  # the advice, followed
    found = restore(path, artifact)
    assert message(InputError, lambda: found["layer.weight"]) == MESSAGE.format(68000)


@pytest.mark.parametrize("source", ["t.fsw", "finetuned.safetensors", "extra"])
def test_writing_float16_of_a_float32_model_is_refused(tmp_path: Path, source: str) -> None:
    base, tuned = states(torch.float32, weight=1.0 if source == "extra" else 70000.0)
    if source == "extra":
        base["head.weight"] = torch.ones(2)
        tuned["head.weight"] = torch.ones(3) * 1e6
        message_ = MESSAGE.replace("layer", "head").format("1e+06")
        pair = file_pair(tmp_path, base, tuned, on_resize="extra")
    else:
        pair, message_ = file_pair(tmp_path, base, tuned), MESSAGE.format(78000)
    artifact = compressed(pair, tmp_path / "t.fsw", "p-discard", drop=0.0)
    given = artifact.path if source != "finetuned.safetensors" else tmp_path / source
    options: dict[str, Any] = {"base": tmp_path / "base.safetensors", "dtype": "float16"}
    task = artifact.header.name if given == artifact.path else "finetuned"
    assert message(InputError, lambda: merge([given], tmp_path / "out", task=task, **options)) == message_
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", [{"task": "same"}, {"method": "average"}], ids=str)
def test_an_unchanged_weight_that_does_not_fit_is_refused_too(tmp_path: Path, way: dict[str, Any]) -> None:
    base = {"layer.weight": torch.full((3,), 1e5)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(base, tmp_path / "same.safetensors")
    options: dict[str, Any] = {"base": tmp_path / "base.safetensors", "dtype": "float16"}
    given = [tmp_path / "same.safetensors"]
    assert message(InputError, lambda: merge(given, tmp_path / "out", **way, **options)) == MESSAGE.format(
        100000
    )


def test_what_was_not_finite_before_stays_as_it_is() -> None:
    base = {"w": torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0], dtype=torch.float16)}
    found = restore(memory_pair(base, base).base, memory_pair(base, base))["w"]
    assert found.isinf().tolist() == [True, True, False, False]
    assert bool(found[2].isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_values_are_rounded_as_torch_does_up_to_the_largest(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([largest, -largest, 0.1, largest * (1 + 1e-9)], dtype=torch.float64).to(
        torch.float32
    )
    before = torch.zeros(4)
    assert torch.equal(rounded(values, before, dtype, "w"), values.to(dtype))
    beyond = torch.tensor([1.0, np.inf])
    assert "'w'" in message(InputError, lambda: rounded(beyond, before[:2], dtype, "w"))
    assert torch.equal(rounded(beyond, beyond, dtype, "w"), beyond.to(dtype))
    assert len(rounded(torch.empty(0), torch.empty(0), dtype, "w")) == 0


def test_integers_are_never_refused() -> None:
    counters = torch.tensor([2**40])
    assert rounded(counters, counters, torch.int64, "n") is counters
