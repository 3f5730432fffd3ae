"""Measures what the parts of FlexSwitch bring, on the tasks with short texts, and writes docs/benchmarks.md.

    python benchmarks/flexswitch/ablation.py --data DIR --models benchmarks/text8/cache

DIR, --models and --cache are those of run.py, which says where such data comes from.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flexswitch.codecs.storage import store
from flexswitch.codecs.zoo import open_zoo

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from measure import FLEXSWITCH, Workshop, at_size, key_of, learned, workshop  # noqa: E402  # siblings
from report import machine, table, write_section  # noqa: E402

SIZE, STEPS = 265, 100  # kB
TASKS = ("banking77", "cola", "trec6")
PARTS = {
    "no LGS: the same share of every tensor": ("gates=uniform",),
    "no BAS: signs alone": ("bits=1",),
    "neither": ("gates=uniform", "bits=1"),
}
FORMS = {"bitmask": "masks and signs", "flag4": "the 2025 form", "grouped-coo": "the paper's grouped COO"}


def main() -> None:
    shop = workshop(__doc__)
    few = replace(shop, only=TASKS)
    rows = [row("all of it", learned(shop, SIZE, STEPS, 0))]
    rows += [row(name, learned(few, SIZE, STEPS, 0, settings)) for name, settings in PARTS.items()]
    for codec, title in FORMS.items():
        rows.append([f"SASS off: {title}", f"{one_form(shop, codec) / 1e3:,.0f}", *rows[0][2:]])
    section = f"""## What the parts of FlexSwitch bring

    python benchmarks/flexswitch/ablation.py --data DIR --models benchmarks/text8/cache

On {", ".join(TASKS)} at {SIZE} kB, {STEPS} steps, one seed; the divergence is that from the
fine-tuned model on exemplars held out. Measured on {machine()}.

{table(["FlexSwitch", "kB", "average", "divergence"], rows)}"""
    write_section("flexswitch-ablation", section)
    print(section)


def row(name: str, scores: dict[str, Any]) -> list[str]:
    """Returns a line of the table."""
    payload, accuracy = ([scores[key][task] for task in TASKS] for key in ("payload", "accuracy"))
    divergences = [scores["learning"][task]["after"]["held_out_divergence"] for task in TASKS]
    return [
        name,
        f"{statistics.mean(payload) / 1e3:,.0f}",
        f"{statistics.mean(accuracy):.2f}",
        f"{statistics.mean(divergences):.4f}",
    ]


def one_form(shop: Workshop, codec: str) -> float:
    """Returns the bytes a task that all of it takes (of TASKS) where every block is stored by one codec."""
    texts: Sequence[str] = (*FLEXSWITCH, f"steps={STEPS}", "seed=0")
    zoo = open_zoo(shop.cache / f"{key_of(shop, 'flexswitch', texts, at_size(shop, SIZE))}.zoo")
    total = 0
    for task in TASKS:
        for name in zoo[task].header.tensors:
            total += sum(len(block.data) for block in store(zoo[task].sparse(name), codec).blocks)
    return total / len(TASKS)


if __name__ == "__main__":
    main()
