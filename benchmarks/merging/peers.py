"""Compares merges with those that mergekit made of the same models.

    python benchmarks/merging/peers.py --peers DIR

DIR holds yaml/NAME.yaml, its configurations, with paths relative to DIR, and expected/NAME.safetensors, what
mergekit-yaml made of each in float32. Every configuration is merged by `flexswitch merge --config`, and the
largest difference is printed. Of the methods that draw at random, whose draws differ, the share of entries
that moved and their mean change are printed beside mergekit's.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import safe_open

from flexswitch.merging.commands.merge_config import merge_config

TOLERANCE = 1e-6
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")

State = dict[str, NDArray[np.float32]]


class Moves(NamedTuple):
    """The share of entries that differ from the base, and the mean magnitude of their change."""

    share: float
    mean: float


def read(path: Path) -> State:
    """Returns the tensors of a file."""
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a file is no mapping


def difference(found: State, expected: State) -> float:
    """Returns the largest difference; infinity where names or shapes differ."""
    if {name: each.shape for name, each in found.items()} != {
        name: each.shape for name, each in expected.items()
    }:
        return float("inf")
    return max(float(np.abs(found[name].astype(np.float64) - expected[name]).max()) for name in expected)


def moves(state: State, base: State) -> Moves:
    """Returns how far a model has moved from its base."""
    change = np.abs(np.concatenate([(state[name] - base[name]).reshape(-1) for name in base]))
    return Moves(float((change > 0).mean()), float(change[change > 0].mean()))


def compare(configuration: Path, expected: Path, output: Path) -> tuple[str, bool]:
    """Returns a line of the table, and whether both agree."""
    merge_config(configuration, output, overwrite=True)
    found, wanted = read(output / "model.safetensors"), read(expected)
    document = yaml.safe_load(configuration.read_text(encoding="utf-8"))
    if document["merge_method"] in RANDOM:
        base = read(Path(document["base_model"]) / "model.safetensors")
        ours, theirs = moves(found, base), moves(wanted, base)
        agrees = abs(ours.share - theirs.share) < 0.01 and abs(ours.mean / theirs.mean - 1) < 0.02
        line = f"moved {ours.share:.4f}, mean {ours.mean:.3g}; mergekit {theirs.share:.4f}, {theirs.mean:.3g}"
        return line, agrees
    largest = difference(found, wanted)
    return f"largest difference {largest:.3g}", largest <= TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, required=True, metavar="DIR")
    os.chdir(parser.parse_args().peers)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for expected in sorted(Path("expected").glob("*.safetensors")):
            line, agrees = compare(Path("yaml") / f"{expected.stem}.yaml", expected, Path(folder) / "out")
            failed += not agrees
            print(f"{expected.stem:16} {line}{'' if agrees else '  DIFFERS'}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
