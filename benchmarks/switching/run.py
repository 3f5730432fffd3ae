"""Times a batch that is answered under each sample's own task vectors, and writes docs/benchmarks.md.

    python benchmarks/switching/run.py --data DIR --models benchmarks/text8/cache --zoo "t-switch, drop
    0.6=ZOO" ...

DIR holds the eight text tasks and --models the fine-tuned models, both of benchmarks/text8/run.py, which says
where such data comes from; each --zoo is a zoo of theirs under a name for the table. Of more than eight tasks
the others are the same vectors again, decoded and kept apart, so their time and memory is that of other
tasks.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.zoo import Zoo, open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.examples import read_examples, task_file
from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.routing.voting_options import VotingOptions
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import delta_tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import machine, processor, table, write_section  # noqa: E402  # a sibling, found by the line above

BATCHES = (1, 16, 64, 256)
TASKS = (8, 64, 256)
CACHE_BYTES = 6 << 30
LENGTH = 48  # tokens at most, as in training
FULL = 24  # tokens of every text in the batches without padding
UNPADDED = (64,)  # samples of such batches
_OFTEN = 64  # samples of the batches that are answered three times as often
_REBUILT = 64  # samples, up to which the naive way is measured too
NAMES = {
    "switched": "switched",
    "routed": "routed too",
    "fused": "fused",
    "merged": "merged",
    "naive": "naive",
}
WAYS = tuple(NAMES)
SETTLED = 12  # batches that are answered before, so that what pays for itself is made
MIXED = 0.3  # share of the samples that two tasks answer

Batch = dict[str, Tensor]


def samples(
    data: Path, adapter: Any, tasks: list[str], count: int, full: bool = False
) -> tuple[list[str], Batch]:
    """Returns mixed test texts and the batch of them; `full`: of texts that have FULL tokens, cut there."""
    generator = np.random.default_rng(0)
    texts: list[str] = []
    for task in tasks:
        inputs = read_examples(task_file(data, task, "test"), labelled=False).inputs
        suiting = [str(text) for text in inputs if not full or len(str(text).split()) >= FULL]
        texts += suiting[: -(-count // len(tasks)) * (len(tasks) if full else 1)]
    chosen = [texts[index] for index in generator.permutation(len(texts))[:count]]
    batch = adapter.batch(chosen)
    longest = FULL if full else int(batch["attention_mask"][:, :LENGTH].sum(1).max())
    return chosen, {name: tensor[:, :longest] for name, tensor in batch.items()}


def weights(count: int, tasks: int) -> Tensor:
    """Returns each sample's weights: of seven in ten one task's, of the others two tasks'."""
    generator = np.random.default_rng(count * 1000 + tasks)
    found = np.zeros((count, tasks), np.float32)
    for row in found:
        first, second = generator.choice(tasks, 2, replace=False)
        share = generator.integers(6, 10) / 10 if generator.random() < MIXED else 1.0
        row[first], row[second] = share, 1 - share
    return torch.from_numpy(found)


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

    def __call__(self, batch: Batch, shares: Tensor) -> Tensor:
        vectors, group_of = torch.unique(shares, dim=0, return_inverse=True)
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


def medians(calls: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each call; all take turns in every round, and are given its number."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call(turn)
            if turn:  # the first compiles and decodes
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def measure(
    module: nn.Module,
    zoo: Zoo,
    texts: list[str],
    batch: Batch,
    tasks: int,
    rounds: int,
    ways: Sequence[str],
) -> dict[str, float]:
    """Returns the seconds of some ways to answer a batch; every round brings other weights."""
    names, count = list(zoo), len(batch["input_ids"])
    numbered = {
        f"{names[number % len(names)]} {number}": zoo[names[number % len(names)]] for number in range(tasks)
    }
    shuffled = [
        torch.randperm(tasks, generator=torch.Generator().manual_seed(turn))
        for turn in range(rounds + 1 + SETTLED)
    ]
    asked = [weights(count, tasks)[:, order] for order in shuffled]
    calls: dict[str, Callable[[int], Any]] = {"base": lambda turn: module(**batch)}
    models = []
    for way, engine in (("switched", "auto"), ("fused", "fused"), ("merged", "merged")):
        if way in ways and (way == "switched" or tasks == len(zoo)):
            model = SwitchedModel(module, numbered, engine=engine, cache_bytes=CACHE_BYTES)
            calls[way] = lambda turn, model=model: model(batch, weights=asked[turn])
            models.append(model)
    if "routed" in ways and tasks == len(zoo) and zoo.record.index is not None:
        routed = SwitchedModel(module, zoo, routing=VotingOptions(40), cache_bytes=CACHE_BYTES)
        calls["routed"] = lambda turn: routed(batch, texts=texts)
        models.append(routed)
    if "naive" in ways and tasks == len(zoo) and count <= _REBUILT:
        rebuilt = Naive(module, {task: zoo[task] for task in zoo})
        calls["naive"] = lambda turn: rebuilt(batch, asked[turn])
    for each in models:
        each.warm_up({name: tensor[:1] for name, tensor in batch.items()})
    for turn in range(rounds + 1, rounds + 1 + SETTLED):
        for way in ("switched", "routed"):
            if way in calls:
                calls[way](turn)
    return medians(calls, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--models", type=Path, required=True, help="folder with the model directory base")
    parser.add_argument("--zoo", action="append", required=True, metavar="NAME=ZOO", help="may be repeated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--tasks", type=int, nargs="*", default=TASKS)
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS, help="measured beside the base")
    options = parser.parse_args()
    base = open_checkpoint(str(options.models / "base"))
    adapter = get_adapter(base, "hf-encoder")
    module = adapter.encoder()
    body, indexes = [], {}
    with torch.inference_mode():
        for text in options.zoo:
            name, _, path = text.partition("=")
            zoo = open_zoo(path)
            if zoo.record.index is not None:
                indexes[name] = f"{name} by `{zoo.record.index.features}`"
            for tasks in options.tasks:
                shapes = [(count, False) for count in options.batches]
                shapes += [(count, True) for count in UNPADDED if count in options.batches]
                for count, full in shapes:
                    texts, batch = samples(options.data, adapter, list(zoo), count, full)
                    padding = 1 - float(batch["attention_mask"].float().mean())
                    rounds = options.rounds * (3 if count == _OFTEN else 1)
                    found = measure(module, zoo, texts, batch, tasks, rounds, options.ways)
                    ratios = [
                        f"{found[way] / found['base']:.2f}×" if way in found else "–" for way in options.ways
                    ]
                    body.append(
                        [
                            name,
                            str(tasks),
                            str(count),
                            f"{padding:.0%}",
                            f"{1e3 * found['base']:.0f} ms",
                            *ratios,
                        ]
                    )
                    print(body[-1], flush=True)
    header = ["task vectors", "tasks", "batch", "padding", "base", *(NAMES[way] for way in options.ways)]
    which = processor() if tuple(options.ways) == WAYS else f"{processor()}, {', '.join(options.ways)} alone"
    asked = "" if tuple(options.ways) == WAYS else f" --ways {' '.join(options.ways)}"
    section = f"""## Switching: time of a batch over one forward pass of the base ({which})

    python benchmarks/switching/run.py --data DIR --models benchmarks/text8/cache --zoo NAME=ZOO{asked}

MiniLM-L6, mixed test texts of the eight tasks, padded to the longest, at most {LENGTH} tokens, float32; the
median of {options.rounds} rounds, for {_OFTEN} samples {3 * options.rounds}, all ways in turn. *Padding* is
its share of a batch: the base computes it, switching leaves it out of all but attention; the rows of 0 % are
of texts cut at {FULL} tokens. *Switched*: the weights are given, other ones in every round; seven samples in
ten have one task, the others two. *Routed too*: features, search and answer, 40 neighbours; indexed are
{", ".join(indexes.values())}.
*Fused*, *merged*: the weights given, these engines asked for by name; *switched* and *routed too* choose,
after {SETTLED} other batches.
*Naive* rebuilds the weights of each weight vector from dense deltas. {torch.get_num_threads()} threads.
Measured on {machine()}.

{table(header, body)}"""
    write_section(f"switching: {which}", section)
    print(section)


if __name__ == "__main__":
    main()
