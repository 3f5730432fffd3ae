"""Measures what the parts of FlexSwitch bring, and writes docs/benchmarks.md.

    python benchmarks/flex_switch/ablation.py --data DIR --models benchmarks/text8/cache

DIR, --models and --cache are those of run.py, which says where such data comes from.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.codecs.storage import store

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from measure import FLEXSWITCH, Setup, at_size, key_of, mean, read_setup, trained
from report import machine, table, write_section

SIZE, STEPS = 265, 100  # kB
SEEDS = (0, 1)
PARTS = {
    "no LGS: the same share of every tensor": ("densities=uniform",),
    "no BAS: signs alone": ("bits=1",),
    "neither": ("densities=uniform", "bits=1"),
}
FORMS = {"bitmask": "masks and signs", "flag4": "the 2025 form", "grouped-coo": "the paper's grouped COO"}


def main() -> None:
    setup = read_setup(__doc__)
    rows = []
    for name, settings in {"all of it": (), **PARTS}.items():
        rows.append(row(name, [trained(setup, SIZE, STEPS, seed, settings) for seed in SEEDS]))
    for codec, title in FORMS.items():
        rows.append([f"SASS off: {title}", f"{one_form(setup, codec) / 1e3:,.0f}", *rows[0][2:]])
    section = f"""## What the parts of FlexSwitch bring

    python benchmarks/flex_switch/ablation.py --data DIR --models benchmarks/text8/cache

All eight tasks at {SIZE} kB, {STEPS} steps, `form=sparse`, mean of seeds {", ".join(map(str, SEEDS))}; the
divergence is that from the fine-tuned model on exemplars held out, and *trained* that on the exemplars
themselves. An average has a standard error of about 0.4. Measured on {machine()}.

{table(["FlexSwitch", "kB", "average", "by seed", "divergence", "trained"], rows)}"""
    write_section("flexswitch-ablation", section)
    print(section)


def row(name: str, scores: list[dict[str, Any]]) -> list[str]:
    """Returns a row of the table. scores: those of each seed."""
    after = [training["after"] for score in scores for training in score["training"].values()]
    averages = [mean(score["accuracy"]) for score in scores]
    divergences = [
        statistics.mean(record[key] for record in after) for key in ("held_out_divergence", "divergence")
    ]
    return [
        name,
        f"{statistics.mean(mean(score['payload']) for score in scores) / 1e3:,.0f}",
        f"{statistics.mean(averages):.2f}",
        ", ".join(f"{average:.2f}" for average in averages),
        *(f"{divergence:.4f}" for divergence in divergences),
    ]


def one_form(setup: Setup, codec: str) -> float:
    """Returns the bytes a task that all of it takes (seed 0) where every block is stored by one codec."""
    texts: Sequence[str] = (*FLEXSWITCH, f"steps={STEPS}", "seed=0")
    zoo = open_zoo(setup.cache / f"{key_of('flexswitch', texts, at_size(setup, SIZE))}.zoo")
    total = 0
    for artifact in zoo.values():
        for name in artifact.header.tensors:
            total += sum(len(block.data) for block in store(artifact.sparse(name), codec).blocks)
    return total / len(zoo)


if __name__ == "__main__":
    main()
