"""Checks of a switched model on a device by both of its products, and its speed and memory."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from models import artifacts, decoder, token_ids
from setting import GIB, Figures, Setting, close
from torch import nn

from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.switching import bit_planes, switched_model
from flexswitch.merging.switching.bit_planes import BitPlaneMatrix
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.task_vectors.task_vector import TaskVector

TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
CACHE_BYTES = 24 * GIB


def switched(setting: Setting) -> Figures:
    """Compares the answers of mixed rows with those of a float32 model on the CPU, by both products."""
    model = decoder("small", "cpu")
    zoo = {
        f"task{number}": each
        for number, each in enumerate(artifacts(setting.work / "zoo", model, 3, drop=0.6))
    }
    ids = token_ids(5, 6, "cpu")
    weights = torch.tensor([[1.0, 0, 0], [0, 0.7, 0.3], [0, 0, 0], [0.2, 0.3, 0.5], [0, 0, 1.0]])
    expected = SwitchedModel(model, zoo, check_base=False)(ids, weights=weights)
    for product in _products():
        for dtype, tolerance in TOLERANCES.items():
            if product == "triton" and dtype == torch.bfloat16 and setting.is_dry:
                continue  # Triton's interpreter can't multiply it
            for engine in ("fused", "grouped"):
                with _using(product, setting):
                    own = decoder("small", "cpu", dtype).to(setting.device)
                    model = SwitchedModel(own, zoo, engine=engine, check_base=False)
                    found = model(ids.to(setting.device), weights=weights)
                name = f"{product}, {engine}, {str(dtype).removeprefix('torch.')}"
                yield f"{name}, difference", close(name, found, expected, tolerance)


def switched_speed(setting: Setting, tasks: int) -> Figures:
    """Times 64 prompts of 64 tokens, each under one of the tasks of a 1 B model in bfloat16."""
    tasks = setting.of(tasks, 2)
    module = decoder(setting.size, setting.device, setting.half)
    artifact = artifacts(setting.work / setting.size, module, 1, drop=0.6)[0]
    ids = token_ids(setting.of(64, 4), setting.of(64, 4), setting.device)
    weights = torch.eye(tasks)[np.random.default_rng(0).permutation(len(ids)) % tasks]
    with torch.inference_mode():
        base = setting.seconds(lambda: module(ids))
    yield "parameters", sum(parameter.numel() for parameter in module.parameters())
    yield "base, ms", 1e3 * base
    zoo = {f"task{number}": artifact for number in range(tasks)}
    with patch.object(TaskDeltas, "_decoded", _decoded_once(TaskDeltas._decoded)):
        for product in _products():
            model = _fused(product, setting, module, zoo)
            with _using(product, setting):
                answer = partial(model, ids, weights=weights)
                yield f"{product}, over the base", setting.seconds(answer, 3) / base
        yield "resident, GiB", model._loaded.deltas.nbytes / GIB
        yield "resident a task, bits a parameter", 8 * model._loaded.deltas.nbytes / tasks / _entries(module)
    yield "peak memory, GiB", setting.peak_bytes() / GIB


def _fused(product: str, setting: Setting, module: nn.Module, zoo: Mapping[str, Artifact]) -> SwitchedModel:
    with _using(product, setting):
        return SwitchedModel(module, zoo, engine="fused", cache_bytes=CACHE_BYTES, check_base=False)


def _entries(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _products() -> list[str]:
    """Returns the ways to multiply by bit planes: by the Triton kernel, if installed, and by torch."""
    return ["triton", "torch"] if importlib.util.find_spec("triton") is not None else ["torch"]


@contextmanager
def _using(product: str, setting: Setting) -> Iterator[None]:
    """Makes products with bit planes run in one way; a dry run has bit planes on the CPU."""
    with ExitStack() as stack:
        if product == "torch":
            stack.enter_context(patch.object(bit_planes, "runs_kernel", lambda *_: False))
        if setting.is_dry:
            planes = partial(TaskDeltas, bit_planes=True)
            stack.enter_context(patch.object(switched_model, "TaskDeltas", planes))
        yield


def _decoded_once(decoded: object) -> object:
    """Returns a stand-in for `TaskDeltas._decoded`: every task is a copy of the first."""
    first: list[dict[str, DeltaMatrix]] = []

    def copied(deltas: TaskDeltas, vector: TaskVector) -> dict[str, DeltaMatrix]:
        if not first:
            first.append(decoded(deltas, vector))
            return first[0]
        return {name: _copy(matrix) for name, matrix in first[0].items()}

    return copied


def _copy(matrix: DeltaMatrix) -> DeltaMatrix:
    return replace(matrix, planes=matrix.planes.clone()) if isinstance(matrix, BitPlaneMatrix) else matrix
