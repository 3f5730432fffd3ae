"""Checks of FlexSwitch's training step on a device, and its speed and memory."""

from collections.abc import Sequence
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from models import decoder, token_ids
from setting import GIB, Figures, Setting, close
from torch import Tensor, nn

from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.flex_switch import gated_model
from flexswitch.merging.flex_switch.delta_rows import DeltaRows
from flexswitch.merging.flex_switch.gated_model import GatedModel
from flexswitch.merging.flex_switch.gated_tensor import DeviceGatedTensor, GateGradients, Gates
from flexswitch.merging.flex_switch.training_step import set_gates
from flexswitch.merging.models.fused_tensors import Place

BITS = np.array([1, 2, 4, 8])
RANDOM = 1 << 22  # numbers that are made; a larger delta repeats them


def step(setting: Setting) -> Figures:
    """Compares a step's loss, gradients and counts with those of the CPU."""
    ids = token_ids(4, 9, "cpu")
    expected = _step(_gated(decoder("small", "cpu")), ids)
    model = decoder("small", setting.device)
    found = _step(_on_device(model), ids.to(setting.device))
    yield "loss, difference", close("the loss", torch.tensor(found[0]), torch.tensor(expected[0]), 1e-4)
    largest = 0.0
    for name, one, other in zip(dict(model.named_parameters()), found[1], expected[1], strict=True):
        for part, value in one._asdict().items() if one is not None else ():
            wanted = torch.from_numpy(getattr(other, part))
            largest = max(largest, close(f"'{name}', {part}", torch.from_numpy(value), wanted, 5e-3))
    yield "gradients, difference", largest


def step_speed(setting: Setting) -> Figures:
    """Times a training step of a 1 B model, 16 texts of 64 tokens, beside the same passes without gates."""
    model = decoder(setting.size, setting.device)
    ids = token_ids(setting.of(16, 2), setting.of(64, 8), setting.device)
    yield "parameters", sum(parameter.numel() for parameter in model.parameters())
    with torch.autocast(setting.device, torch.bfloat16):
        yield "passes alone, ms", 1e3 * setting.seconds(lambda: _passes(model, ids), 3)
        gated = _on_device(model)
        yield "a step, ms", 1e3 * setting.seconds(lambda: _step(gated, ids), 3)
    yield "peak memory, GiB", setting.peak_bytes() / GIB


def _on_device(model: nn.Module) -> tuple[GatedModel, list[Gates]]:
    """Returns `_gated`; a dry run takes the device's code on the CPU."""
    with patch.object(gated_model, "gated_weights", DeviceGatedTensor):
        return _gated(model)


def _gated(model: nn.Module) -> tuple[GatedModel, list[Gates]]:
    """Returns a model whose matrices have all changed, and gates of all bit-widths."""
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal(RANDOM, np.float32)
    tensors, places = list[DeltaRows](), dict[str, Place]()
    for name, parameter in model.named_parameters():
        rows, columns = (1, len(parameter)) if parameter.dim() == 1 else parameter.shape
        rms = 0.1 * float(parameter.detach().float().square().mean().sqrt()) + 1e-4
        delta = rms * np.resize(numbers, parameter.numel())
        shape, own = tuple(parameter.shape), np.arange(rows)
        read = partial(np.asarray, delta.astype(np.float32))
        tensors.append(DeltaRows(name, shape, "F32", own, columns, read, rms))
        places[name] = Place(name, 0, parameter.numel())
    gates = [
        Gates(
            np.full(len(tensor.rows), tensor.rms, np.float32), 0.15 * tensor.rms, BITS,
            np.full(len(BITS), 1.7 * tensor.rms, np.float32), np.full(len(BITS), 0.25, np.float32),
        )
        for tensor in tensors
    ]  # fmt: skip
    return GatedModel(model, tensors, places, 1), gates


def _step(gated: tuple[GatedModel, Sequence[Gates]], ids: Tensor) -> tuple[float, list[GateGradients | None]]:
    """Returns the loss and the gradients of the gates; Adam's few hundred numbers are left out."""
    model, gates = gated
    with parallel_map(1) as in_parallel:
        set_gates(model, gates, in_parallel)
        return model.backward_all([lambda own: _loss(own, ids)], in_parallel)[0]


def _passes(model: nn.Module, ids: Tensor) -> None:
    """Runs a batch forward and back by the matrices of linear layers."""
    wanted = [
        module.weight.requires_grad_(True) for module in model.modules() if isinstance(module, nn.Linear)
    ]
    torch.autograd.grad(_loss(model, ids), wanted)
    model.requires_grad_(False)


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids).float().square().mean()
