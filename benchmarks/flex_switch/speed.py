"""Times a training step against the same step in plain torch autograd, and writes docs/benchmarks.md.

    python benchmarks/flex_switch/speed.py --data DIR --models benchmarks/text8/cache

Both run the same batch through the same model, with all four bit-widths mixed. The plain one builds every
weight by torch operations under autograd, as straight-through estimation is usually written. Peak memory is
of the whole process of each, after the same start.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flexswitch.codecs.format.records import ArtifactHeader, BaseIdentity, MethodRecord
from flexswitch.codecs.threads import ParallelMap, parallel_map
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.compression.plan import TrainingInputs
from flexswitch.merging.flex_switch.compression_task import read_compression_task
from flexswitch.merging.flex_switch.delta_rows import DeltaRows
from flexswitch.merging.flex_switch.gated_model import GatedModel
from flexswitch.merging.flex_switch.gated_tensor import Gates
from flexswitch.merging.flex_switch.training_data import (
    DataSettings,
    TrainingData,
    open_training_data,
)
from flexswitch.merging.flex_switch.training_step import set_gates
from flexswitch.merging.models.examples import batch_rows
from flexswitch.merging.task_vectors.open_vector import open_finetuned

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import machine, table, write_section

BITS = np.array([1, 2, 4, 8])
BATCH, THRESHOLD, WIDTH = 16, 2.0, 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.train.jsonl.gz files")
    parser.add_argument("--models", type=Path, default=HERE.parent / "text8" / "cache")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("plain", "float32", "bfloat16"), help="one of them, as JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(options, options.only)))
        return
    found: dict[str, list[dict[str, float]]] = {"plain": [], "float32": [], "bfloat16": []}
    for _ in range(options.rounds):  # in turn, so that a busy moment does not fall on one alone
        for name, results in found.items():
            command = [sys.executable, *sys.argv, "--only", name]
            results.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    best = {name: min(result["seconds"] for result in results) for name, results in found.items()}
    names = {
        "plain": "plain torch autograd, float32",
        "float32": "flexswitch, float32",
        "bfloat16": "flexswitch, bfloat16 products",
    }
    rows = [
        [
            title,
            f"{best[name]:.2f} s",
            f"{best['plain'] / best[name]:.1f}×",
            f"{found[name][0]['forward'] / best[name]:.0%}",
            f"{found[name][0]['peak'] / 1e9:.2f} GB",
        ]
        for name, title in names.items()
    ]
    section = f"""## A training step

    python benchmarks/flex_switch/speed.py --data DIR --models benchmarks/text8/cache

One step on {options.task}: {BATCH} texts, MiniLM-L6 (22.7 M parameters), four bit-widths mixed, threads:
{options.jobs}; the best of {options.rounds} processes in turn. *Model alone* is the share of the step that
the same forward and backward pass takes without gates. Measured on {machine()}.

{table(["", "a step", "", "model alone", "peak memory"], rows)}"""
    write_section("flexswitch-speed", section)
    print(section)


def measured(options: argparse.Namespace, kind: str) -> dict[str, float]:
    """Returns seconds of a step and of the model alone, and the process's peak memory in bytes."""
    base = open_checkpoint(str(options.models / "base"))
    vector = open_finetuned(str(options.models / options.task), base)
    header = ArtifactHeader(
        name=options.task,
        base=BaseIdentity(fingerprint="0" * 64),
        method=MethodRecord(name="flexswitch"),
        parameters=vector.parameters,
    )
    precision: Any = "bfloat16" if kind == "bfloat16" else "float32"
    with parallel_map(options.jobs) as in_parallel:
        task = read_compression_task(vector, header, BITS, "fast", in_parallel)
        inputs = TrainingInputs(base, options.data)
        settings = DataSettings(options.task, inputs, "kl", 0, 1, 0, precision)
        data = open_training_data(vector, settings, in_parallel)
        rows = batch_rows(0, BATCH, len(data.exemplars), 0)
        forward = seconds_of(lambda: model_alone(data, rows, in_parallel, options.jobs))
        if kind == "plain":
            torch.set_num_threads(options.jobs)
            plain = Plain(task.tensors, data)
            seconds = seconds_of(lambda: plain.step(rows))
        else:
            model = GatedModel(data.model, task.tensors, data.places, options.jobs)
            seconds = seconds_of(
                lambda: fused_step(task.tensors, model, data, rows, in_parallel, options.jobs)
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "forward": forward, "peak": float(peak)}


def seconds_of(work: Any, times: int = 5) -> float:
    """Returns the best of a few calls, after one that compiles and allocates."""
    work()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def model_alone(data: TrainingData, rows: list[int], parallel_map: ParallelMap, shards: int) -> None:
    """Runs a batch forward and back by the weights of linear layers, without gates."""
    losses = data.losses(rows, shards)
    wanted = [module.weight for module in data.model.modules() if isinstance(module, nn.Linear)]
    for weight in wanted:
        weight.requires_grad_(True)

    def run(shard: int) -> None:
        with torch.enable_grad():
            torch.autograd.grad(losses[shard](data.model), wanted)

    parallel_map(run, len(losses))
    data.model.requires_grad_(False)


def fused_step(
    tensors: list[DeltaRows],
    model: GatedModel,
    data: TrainingData,
    rows: list[int],
    parallel_map: ParallelMap,
    shards: int,
) -> None:
    """Runs a step's passes; what Adam does to a few hundred numbers is left out on both sides."""
    share = np.full(len(BITS), 1 / len(BITS), np.float32)
    gates = [
        Gates(
            np.full(len(tensor.rows), THRESHOLD * tensor.rms, np.float32), WIDTH * tensor.rms, BITS,
            np.full(len(BITS), THRESHOLD * tensor.rms, np.float32), share,
        )
        for tensor in tensors
    ]  # fmt: skip
    set_gates(model, gates, parallel_map)
    model.backward_all(data.losses(rows, shards), parallel_map)


class Plain:
    """The same in torch operations under autograd: a graph over every entry of every tensor."""

    def __init__(self, tensors: list[DeltaRows], data: TrainingData) -> None:
        self._data = data
        parameters = dict(data.model.named_parameters())
        self._parts = []
        for tensor in tensors:
            base = parameters[data.places[tensor.name].name].detach().clone()
            delta = torch.zeros(base.shape)
            delta.view(-1, tensor.columns)[torch.from_numpy(tensor.rows)] = torch.from_numpy(
                tensor.delta
            ).view(-1, tensor.columns)
            trained = [torch.tensor(THRESHOLD), torch.full((len(BITS),), THRESHOLD), torch.zeros(len(BITS))]
            self._parts.append((data.places[tensor.name].name, base, delta / tensor.rms, tensor.rms, trained))

    def step(self, rows: list[int]) -> None:
        weights = {}
        for name, base, ratio, rms, trained in self._parts:
            for parameter in trained:
                parameter.requires_grad_(True)
                parameter.grad = None
            weights[f"model.{name}"] = base + rms * _gated(ratio, *trained)
        found = functional_call(_Losses(self._data), weights, (rows,))
        found.backward()


class _Losses(nn.Module):
    def __init__(self, data: TrainingData) -> None:
        super().__init__()
        self.model = data.model
        self._data = data

    def forward(self, rows: list[int]) -> Tensor:
        return torch.stack([loss(self.model) for loss in self._data.losses(rows, 1)]).sum()


def _gated(ratio: Tensor, threshold: Tensor, scales: Tensor, logits: Tensor) -> Tensor:
    soft = torch.sigmoid((ratio.abs() - threshold) / WIDTH)
    gate = (ratio.abs() > threshold).float() + soft - soft.detach()
    values = torch.zeros_like(ratio)
    for number, share in enumerate(torch.softmax(logits, 0)):
        steps = 2 ** int(BITS[number]) - 1
        if steps == 1:
            values = values + share * scales[number] * ratio.sign()
            continue
        inside = (ratio / scales[number]).clamp(-1, 1)
        level = (inside * steps + steps) / 2
        level = level + (level.round() - level).detach()
        values = values + share * scales[number] * (2 * level - steps) / steps
    return gate * values


if __name__ == "__main__":
    main()
