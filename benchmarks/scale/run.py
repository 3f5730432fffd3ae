"""Measures time and peak memory of `flexswitch compress` on synthetic sharded bfloat16 pairs.

    python benchmarks/scale/run.py --gigabytes 1 2 4 8 --work DIR

Makes a base and a fine-tuned checkpoint of that size each under --work, compresses one against the
other with T-Switch, warm and cold, and writes the table of docs/benchmarks.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import machine, table, write_section

WIDTH = 4096
VOCABULARY = 32_000
SHARD_BYTES = 1_000_000_000


def shapes(gigabytes: float) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of a decoder-like model of about that size in bfloat16."""
    found: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (VOCABULARY, WIDTH)}
    left = gigabytes * 1e9 / 2 - VOCABULARY * WIDTH
    layer = 0
    while left > 0:
        block = {"attn.weight": (4 * WIDTH, WIDTH), "mlp.weight": (WIDTH, WIDTH), "norm.weight": (WIDTH,)}
        found |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
        left -= 5 * WIDTH * WIDTH + WIDTH
        layer += 1
    return found


def write_checkpoint(path: Path, gigabytes: float, seed: int, base_seed: int = 0) -> None:
    """Writes random weights in shards; another seed than the base's adds a small change to the base's."""
    path.mkdir(parents=True)
    weight_map, shard, used, number = {}, {}, 0, 1
    for index, (name, shape) in enumerate(shapes(gigabytes).items()):
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(base_seed + index)) * 0.02
        if seed != base_seed:
            weights += torch.randn(shape, generator=torch.Generator().manual_seed(seed + index)) * 0.001
        shard[name] = weights.to(torch.bfloat16)
        used += shard[name].nbytes
        weight_map[name] = f"model-{number:05d}.safetensors"
        if used > SHARD_BYTES:
            save_file(shard, path / weight_map[name])
            shard, used, number = {}, 0, number + 1
    if shard:
        save_file(shard, path / f"model-{number:05d}.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def measure(work: Path, gigabytes: float, jobs: int) -> list[str]:
    """Compresses one pair and returns its row of the table."""
    pair = work / f"pair-{gigabytes:g}"
    for name, seed in (("base", 0), ("finetuned", 1_000_000)):
        if not (pair / name / "model.safetensors.index.json").exists():
            write_checkpoint(pair / name, gigabytes, seed)
    files = sorted(pair.glob("*/*.safetensors"))
    drop_from_cache(files)
    cold_read = timed(lambda: read_all(files))  # and the files are in the cache from here on
    with tempfile.TemporaryDirectory() as place:
        warm, document, peak = compress(pair, jobs, Path(place))
        known, _, _ = compress(pair, jobs, Path(place))
    drop_from_cache(files)
    with tempfile.TemporaryDirectory() as place:
        cold, _, _ = compress(pair, jobs, Path(place))
    size = sum(file.stat().st_size for file in (pair / "base").glob("*.safetensors"))
    return [
        f"{size / 1e9:.2f} GB",
        f"{document['parameters'] / 1e6:,.0f} M",
        f"{warm:.1f} s",
        f"{known:.1f} s",
        f"{document['parameters'] / 1e6 / warm:.0f} M/s",
        f"{cold:.1f} s",
        f"{cold_read:.1f} s",
        f"{peak / 1e9:.2f} GB",
        f"{document['bytes'] / 1e6:.0f} MB",
    ]


def compress(pair: Path, jobs: int, known: Path) -> tuple[float, dict[str, Any], int]:
    """Runs the command; returns its seconds, its JSON document and its peak of resident bytes.

    known: a folder of the fingerprints of bases; where it has the base's, nothing is hashed.
    """
    command = [
        "flexswitch", "compress", str(pair / "finetuned"), "--base", str(pair / "base"), "-o",
        str(pair / "out.fsw"), "--method", "t-switch", "--set", "drop=0.9", "--jobs", str(jobs),
        "--overwrite", "--json", "--quiet",
    ]  # fmt: skip
    started = time.monotonic()
    # Each command is the child of a process of its own, whose children's peak is then the command's.
    script = (
        "import resource, subprocess, sys\n"
        "run = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "print(run.stdout)\n"
        "sys.exit(run.returncode)"
    )
    child = subprocess.run(
        [sys.executable, "-c", script, *command], check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "FLEXSWITCH_CACHE": str(known)},
    )  # fmt: skip
    seconds = time.monotonic() - started
    peak, document = child.stdout.split("\n", 1)
    return seconds, json.loads(document), 1024 * int(peak)


def timed(work: Callable[[], None]) -> float:
    """Returns the seconds that some work takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def read_all(files: list[Path]) -> None:
    """Reads files to their ends."""
    for file in files:
        with file.open("rb", buffering=0) as content:
            while content.read(1 << 24):
                pass


def drop_from_cache(files: list[Path]) -> None:
    """Asks the system to forget what it holds of some files, which must be on disk already."""
    os.sync()
    for file in files:
        with file.open("rb") as content:
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for the pairs")
    options = parser.parse_args()
    rows = [measure(options.work, gigabytes, options.jobs) for gigabytes in sorted(options.gigabytes)]
    header = [
        "each checkpoint",
        "parameters",
        "warm",
        "base known",
        "",
        "cold",
        "cold read alone",
        "peak resident",
        "artifact",
    ]
    sizes = " ".join(f"{each:g}" for each in sorted(options.gigabytes))
    section = f"""## Compressing big checkpoints

    python benchmarks/scale/run.py --gigabytes {sizes} --jobs {options.jobs} --work DIR

`flexswitch compress --method t-switch --set drop=0.9` from two sharded bfloat16 checkpoints, the whole
command with its start, the hash of the base included; with the files in the page cache, once more where
the base's hash is known already, and without, beside a plain cold read of the same files. Measured on
{machine()}.

{table(header, rows)}"""
    write_section("scale", section)
    print(section)


if __name__ == "__main__":
    main()
