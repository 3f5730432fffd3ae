"""Times a batch that is answered under each sample's own task vectors, and writes docs/benchmarks.md.

    python benchmarks/switching/run.py --data DIR --models benchmarks/text8/cache --zoo "t-switch, drop
    0.6=ZOO" ...

DIR holds the eight text tasks and --models the fine-tuned models, both of benchmarks/text8/run.py, which says
where such data comes from; each --zoo is an indexed zoo of theirs under a name for the table. Of more than
eight tasks the others are the same vectors again, decoded and kept apart, so their time and memory is that of
other tasks.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.zoo import Zoo, open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.routing.voting_options import VotingOptions
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import delta_tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from batches import FULL, LENGTH, Batch, medians, numbered, samples, weights
from report import machine, table, write_section

SHAPES = ((1, False), (16, False), (64, False), (64, True), (256, False))  # samples; whether without padding
FACTORS = {64: 2, 256: 0.5}  # samples → by what the rounds are multiplied
TASKS = (8, 64)
CACHE_BYTES = 6 << 30
REBUILT = 64  # samples, up to which the naive way is measured too
SETTLED = 768  # samples that are answered before, so that what pays for itself is made
NAMES = {
    "switched": "switched",
    "routed": "routed too",
    "fused": "fused",
    "merged": "merged",
    "naive": "naive",
}


class Naive:
    """Rebuilds the weights of every weight vector in a batch from dense deltas."""

    def __init__(self, module: nn.Module, zoo: dict[str, Artifact]) -> None:
        self.module = module
        vectors = [ArtifactVector(artifact) for artifact in zoo.values()]
        names = names_inside(module, sorted(set().union(*(vector.tensors for vector in vectors))))
        state = module.state_dict()
        self.base = {inside: state[inside] for inside in names.values()}
        self.deltas = [
            {names[name]: delta_tensor(vector, name) for name in vector.tensors} for vector in vectors
        ]

    def __call__(self, batch: Batch, weights: Tensor) -> Tensor:
        """Returns the hidden states of the batch's samples, each under its own weights (sample, task)."""
        vectors, group_of = torch.unique(weights, dim=0, return_inverse=True)
        parts, rows = [], []
        for number, vector in enumerate(vectors):
            own = torch.nonzero(group_of == number).view(-1)
            state = {name: tensor.clone() for name, tensor in self.base.items()}
            for task in torch.nonzero(vector).view(-1):
                for name, delta in self.deltas[int(task)].items():
                    state[name].add_(delta, alpha=float(vector[task]))
            given = {name: tensor[own] for name, tensor in batch.items()}
            parts.append(functional_call(self.module, state, (), given).last_hidden_state)
            rows.append(own)
        return torch.cat(parts)[torch.argsort(torch.cat(rows))]


def ways(module: nn.Module, base: Path, zoo: Zoo, tasks: int, chosen: Sequence[str]) -> dict[str, Any]:
    """Returns what answers a batch by each way; all but "switched" for as many tasks as the zoo has."""
    found: dict[str, Any] = {}
    shared: dict[str, Any] = {"base": base, "cache_bytes": CACHE_BYTES}
    for way, engine in (("switched", "auto"), ("fused", "fused"), ("merged", "merged")):
        if way in chosen and (way == "switched" or tasks == len(zoo)):
            found[way] = SwitchedModel(module, numbered(zoo, tasks), engine=engine, **shared)
    if "routed" in chosen and tasks == len(zoo) and zoo.record.index is not None:
        found["routed"] = SwitchedModel(module, zoo, routing=VotingOptions(40), **shared)
    if "naive" in chosen and tasks == len(zoo):
        found["naive"] = Naive(module, {task: zoo[task] for task in zoo})
    return found


def measure(
    module: nn.Module, models: dict[str, Any], texts: list[str], batch: Batch, tasks: int, rounds: int
) -> dict[str, float]:
    """Returns the seconds of the ways to answer a batch and of the base; every round has other weights."""
    count = len(texts)
    settled = SETTLED // count
    asked = [weights(count, tasks, turn) for turn in range(rounds + 1 + settled)]
    every = {name: tensor[:1].expand(tasks, -1) for name, tensor in batch.items()}
    for way, model in models.items():
        if way not in ("naive", "routed"):  # all tasks are decoded before
            model(every, weights=torch.eye(tasks))
    calls: dict[str, Callable[[int], Any]] = {"base": lambda turn: module(**batch)}
    for way, model in models.items():
        if way == "routed":
            calls[way] = lambda turn, model=model: model(batch, texts=texts)
        elif way != "naive" or count <= REBUILT:
            calls[way] = lambda turn, model=model: model(batch, weights=asked[turn])
    for way in ("switched", "routed"):
        for turn in range(rounds + 1, rounds + 1 + settled) if way in calls else ():
            calls[way](turn)
    return medians(calls, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--models", type=Path, required=True, help="folder with the model directory base")
    parser.add_argument("--zoo", action="append", required=True, metavar="NAME=ZOO", help="may be repeated")
    parser.add_argument("--rounds", type=int, default=4, help="twice as many for 64 samples, half for 256")
    parser.add_argument("--batches", type=int, nargs="*", default=sorted({count for count, _ in SHAPES}))
    parser.add_argument("--tasks", type=int, nargs="*", default=TASKS)
    parser.add_argument("--ways", nargs="*", default=list(NAMES), choices=NAMES, help="beside the base")
    options = parser.parse_args()
    base = options.models / "base"
    adapter = get_adapter(open_checkpoint(str(base)), "hf-encoder")
    module = adapter.encoder()
    body, indexes = [], set()
    with torch.inference_mode():
        for text in options.zoo:
            name, _, path = text.partition("=")
            zoo = open_zoo(path)
            if zoo.record.index is not None:
                indexes.add(f"`{zoo.record.index.features}`")
            for tasks in options.tasks:
                models = ways(module, base, zoo, tasks, options.ways)
                for count, full in SHAPES:
                    if count not in options.batches:
                        continue
                    texts, batch = samples(options.data, adapter, list(zoo), count, full)
                    padding = 1 - float(batch["attention_mask"].float().mean())
                    rounds = max(1, int(options.rounds * FACTORS.get(count, 1)))
                    found = measure(module, models, texts, batch, tasks, rounds)
                    times = [f"{found[way] / found['base']:.2f}×" if way in found else "–" for way in NAMES]
                    line = [name, str(tasks), str(count), f"{padding:.0%}", f"{1e3 * found['base']:.0f} ms"]
                    body.append([*line, *times])
                    print(body[-1], flush=True)
    section = f"""## Switching: time of a batch over one forward pass of the base

    python benchmarks/switching/run.py --data DIR --models benchmarks/text8/cache --zoo NAME=ZOO

MiniLM-L6, mixed test texts of the eight tasks, padded to the longest, at most {LENGTH} tokens, float32; the
median of {options.rounds} rounds, of twice as many for 64 samples and half for 256, all ways in turn.
*Padding* is its share of a batch: the base computes it, switching leaves it out of all but attention; the
rows of 0 % are of one text, or of texts cut at {FULL} tokens. *Switched*: the weights are given, other ones
in every round; seven samples in ten have one task, the others two. *Routed too*: features
({", ".join(sorted(indexes))}), search and answer, 40 neighbours. *Fused*, *merged*: the weights given, these
engines asked for by name; *switched* and *routed too* choose, after {SETTLED} other samples.
All tasks have been decoded before. *Naive* rebuilds the weights of each weight vector from dense deltas.
{torch.get_num_threads()} threads. Measured on {machine()}.

{table(["task vectors", "tasks", "batch", "padding", "base", *NAMES.values()], body)}"""
    write_section("switching", section)
    print(section)


if __name__ == "__main__":
    main()
