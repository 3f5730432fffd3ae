"""Times batches over many tasks, of which a few come up often, and writes docs/benchmarks.md.

    python benchmarks/switching/thousand.py --data DIR --models benchmarks/text8/cache --zoo NAME=ZOO ...

The arguments are those of run.py. A cache that may hold as many bytes as the tasks' files have is too small
for all tasks, so that some are dropped and decoded again.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.switching.switched_model import SwitchedModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from batches import FULL, Batch, medians, numbered, samples, zipf_weights
from report import machine, table, write_section

BATCHES = (64, 1)
SETTLED = 100  # batches of 64 that are answered before


def measure(
    module: nn.Module, model: SwitchedModel, batch: Batch, tasks: int, rounds: int
) -> dict[str, float]:
    """Returns the seconds of the base and of the switched model, other tasks in every round."""
    count = len(batch["input_ids"])
    asked = [zipf_weights(count, tasks, SETTLED + turn) for turn in range(rounds + 1)]
    return medians(
        {"base": lambda _: module(**batch), "switched": lambda turn: model(batch, weights=asked[turn])},
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--models", type=Path, required=True, help="folder with the model directory base")
    parser.add_argument("--zoo", action="append", required=True, metavar="NAME=ZOO", help="may be repeated")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10, help="batches of 64; four times as many of one")
    options = parser.parse_args()
    base = options.models / "base"
    adapter = get_adapter(open_checkpoint(str(base)), "hf-encoder")
    module, body = adapter.encoder(), []
    with torch.inference_mode():
        for text in options.zoo:
            name, _, path = text.partition("=")
            zoo = open_zoo(path)
            size = sum(zoo[task].path.stat().st_size for task in zoo) / len(zoo)
            tasks = numbered(zoo, options.tasks)
            for cache, cache_bytes in {"files": int(size * len(tasks)), "4 GB": 4 << 30}.items():
                model = SwitchedModel(module, tasks, base=base, cache_bytes=cache_bytes)
                for count in BATCHES:
                    _, batch = samples(options.data, adapter, list(zoo), count, full=True)
                    for seed in range(SETTLED if count == BATCHES[0] else 0):
                        model(batch, weights=zipf_weights(count, len(tasks), seed))
                    found = measure(
                        module, model, batch, len(tasks), options.rounds * (4 if count == 1 else 1)
                    )
                    line = [name, cache, str(count), f"{1e3 * found['base']:.0f} ms"]
                    line += [f"{found['switched'] / found['base']:.2f}×", f"{size / 1e3:,.0f}"]
                    body.append([*line, f"{model.cached_bytes / len(tasks) / size:.1f}×"])
                    print(body[-1], flush=True)
    header = ["task vectors", "cache", "batch", "base", "switched", "file of a task, kB", "resident a task"]
    section = f"""## Switching: {options.tasks:,} tasks

    python benchmarks/switching/thousand.py --data DIR --models benchmarks/text8/cache --zoo NAME=ZOO

MiniLM-L6, texts of {FULL} tokens, float32. Each sample has one task, and of {options.tasks:,} the k-th comes
up with a probability like 1 / k; the median of {options.rounds} batches of 64 and {4 * options.rounds} of one
sample, other tasks in each, after {SETTLED} other batches of {BATCHES[0]}. *Cache* is `cache_bytes`, for
delta matrices and for weights of their own each: as much as all tasks' *files*, or 4 GB. The tasks are the
eight of the zoo again and again, decoded and kept apart; it is packed by `--effort fast`.
{torch.get_num_threads()} threads. Measured on {machine()}.

{table(header, body)}"""
    write_section("switching-thousand", section)
    print(section)


if __name__ == "__main__":
    main()
