"""Measures commands on zoos of more and more tasks."""

from pathlib import Path

from commands import flexswitch, least
from models import EXEMPLARS

_INDEX = ("--base", "base", "--exemplars", "data", "--adapter", "hf-image-classification")


def growth(work: Path, sizes: list[int]) -> list[list[str]]:
    """Returns a row for each number of tasks: the seconds of pack, verify and both kinds of index."""
    rows = []
    for size in sizes:
        zoo = f"zoo-{size}"
        packed = flexswitch(work, "pack", *(f"artifacts/t{number}.fsw" for number in range(size)), "-o", zoo)
        verified = flexswitch(work, "verify", zoo)
        indexed = [
            flexswitch(
                work, "index", zoo, *_INDEX, "--per-task", str(EXEMPLARS), "--metric", metric, "--overwrite"
            )
            for metric in ("euclidean", "learned")
        ]
        rows.append([f"{size:,}", *(f"{each.seconds:.1f}" for each in (packed, verified, *indexed))])
    return rows


def adding(work: Path, tasks: int, artifacts: int) -> float:
    """Returns the seconds of `pack --add` of one task to a zoo of many, made of copies of fewer artifacts."""
    named = [f"n{number}=artifacts/t{number % artifacts}.fsw" for number in range(tasks)]
    flexswitch(work, "pack", *named, "-o", "large")
    return min(
        flexswitch(work, "pack", f"new{time}=artifacts/t0.fsw", "--add", "-o", "large").seconds
        for time in range(3)
    )


def answers(work: Path) -> list[list[str]]:
    """Returns a row for each command on a zoo of three tasks, with the seconds until it has answered."""
    flexswitch(work, "pack", *(f"artifacts/t{number}.fsw" for number in range(3)), "-o", "three")
    commands = {
        "`inspect`": ("inspect", "three"),
        "`verify`": ("verify", "three"),
        "`pack` of one task": ("pack", "artifacts/t0.fsw", "-o", "one", "--overwrite"),
        "`run --check`": ("run", "small.yaml", "--check"),
        "`compress` of one model": (
            "compress", "models/t0.safetensors", "--base", "base", "-o", "t0.fsw", "--overwrite",
        ),
    }  # fmt: skip
    (work / "small.yaml").write_text(
        "version: 1\nsteps:\n  - {name: verify, command: verify, inputs: [three]}\n"
    )
    flexswitch(work, "run", "small.yaml")
    return [[name, f"{least(work, *words):.2f}"] for name, words in commands.items()]
