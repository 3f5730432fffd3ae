"""Times batches over many tasks, of which a few come up often, and writes docs/benchmarks.md.

    python benchmarks/switching/thousand.py --data DIR --models benchmarks/text8/cache --zoo NAME=ZOO ...

The arguments are those of run.py. The cache may hold as many bytes as the tasks' files have, so that tasks
are dropped and decoded again.
"""

import argparse
import sys
from pathlib import Path

import torch

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.switching.switched_model import SwitchedModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from batches import FULL, medians, numbered, samples, zipf_weights  # noqa: E402  # siblings, found by the
from report import machine, table, write_section  # noqa: E402  # line above

BATCHES = (1, 64)
SETTLED = 640  # samples that are answered before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--models", type=Path, required=True, help="folder with the model directory base")
    parser.add_argument("--zoo", action="append", required=True, metavar="NAME=ZOO", help="may be repeated")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15, help="batches of each size")
    options = parser.parse_args()
    adapter = get_adapter(open_checkpoint(str(options.models / "base")), "hf-encoder")
    module = adapter.encoder()
    body = []
    with torch.inference_mode():
        for text in options.zoo:
            name, _, path = text.partition("=")
            zoo = open_zoo(path)
            file_bytes = sum(zoo[task].path.stat().st_size for task in zoo) / len(zoo)
            tasks = numbered(zoo, options.tasks)
            model = SwitchedModel(module, tasks, cache_bytes=int(file_bytes * len(tasks)))
            for count in BATCHES:
                _, batch = samples(options.data, adapter, list(zoo), count, full=True)
                rounds = options.rounds * (4 if count == 1 else 1)
                for seed in range(SETTLED // count):
                    model(batch, weights=zipf_weights(count, len(tasks), seed))
                asked = [zipf_weights(count, len(tasks), SETTLED + turn) for turn in range(rounds + 1)]
                calls = {
                    "base": lambda turn, batch=batch: module(**batch),
                    "switched": lambda turn, batch=batch, asked=asked, model=model: model(
                        batch, weights=asked[turn]
                    ),
                }
                found = medians(calls, rounds)
                resident = model.cached_bytes / len(tasks)
                line = [name, str(count), f"{1e3 * found['base']:.0f} ms"]
                line += [f"{found['switched'] / found['base']:.2f}×", f"{file_bytes / 1e3:,.0f}"]
                body.append([*line, f"{resident / file_bytes:.1f}×"])
                print(body[-1], flush=True)
    header = ["task vectors", "batch", "base", "switched", "file of a task, kB", "resident a task"]
    section = f"""## Switching: {options.tasks:,} tasks

    python benchmarks/switching/thousand.py --data DIR --models benchmarks/text8/cache --zoo NAME=ZOO

MiniLM-L6, texts of {FULL} tokens, float32. Each sample has one task, and of {options.tasks:,} the k-th comes
up with a probability like 1 / k; the median of {options.rounds} batches of 64 and {4 * options.rounds} of one
sample, other tasks in each, after {SETTLED} other samples. `cache_bytes` is the size of all tasks' files, for
delta matrices and for weights of their own each. The tasks are the eight of the zoo again and again, decoded
and kept apart. {torch.get_num_threads()} threads. Measured on {machine()}.

{table(header, body)}"""
    write_section("switching-thousand", section)
    print(section)


if __name__ == "__main__":
    main()
