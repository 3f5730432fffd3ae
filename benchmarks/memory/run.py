"""Measures time and peak memory of `flexswitch compress` on synthetic sharded bfloat16 pairs.

    python benchmarks/memory/run.py --gigabytes 1 4 --work DIR

Makes a base and a fine-tuned checkpoint of that size each under --work, compresses one against the
other with T-Switch, and writes the table of docs/benchmarks.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import machine, table, write_section  # noqa: E402  # a sibling, found by the line above

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


def measure(work: Path, gigabytes: float) -> list[str]:
    """Compresses one pair and returns its row of the table."""
    pair = work / f"pair-{gigabytes:g}"
    for name, seed in (("base", 0), ("finetuned", 1_000_000)):
        if not (pair / name / "model.safetensors.index.json").exists():
            write_checkpoint(pair / name, gigabytes, seed)
    command = [
        "flexswitch", "compress", str(pair / "finetuned"), "--base", str(pair / "base"), "-o",
        str(pair / "out.fsw"), "--method", "t-switch", "--overwrite", "--json", "--quiet",
    ]  # fmt: skip
    for file in pair.rglob("*.safetensors"):  # so that the disk is not what is measured
        with file.open("rb") as content:
            while content.read(1 << 26):
                pass
    started = time.monotonic()
    document = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = sum(file.stat().st_size for file in (pair / "base").glob("*.safetensors"))
    return [
        f"{size / 1e9:.2f} GB",
        f"{document['parameters'] / 1e6:,.0f} M",
        f"{seconds:.0f} s",
        f"{document['parameters'] / 1e6 / seconds:.0f} M/s",
        f"{peak / 1e9:.2f} GB",
        f"{document['bytes'] / 1e6:.0f} MB",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--gigabytes", type=float, nargs="+", default=[1, 4], help="sizes, the smallest first"
    )
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for the pairs")
    options = parser.parse_args()
    rows = [measure(options.work, gigabytes) for gigabytes in sorted(options.gigabytes)]
    header = ["each checkpoint", "parameters", "time", "parameters a second", "peak resident", "artifact"]
    sizes = " ".join(f"{each:g}" for each in sorted(options.gigabytes))
    section = f"""## Compressing big checkpoints

    python benchmarks/memory/run.py --gigabytes {sizes} --work DIR

`flexswitch compress --method t-switch` from two sharded bfloat16 checkpoints, the whole command with its
start, the fingerprint of the base included, the files in the page cache. Measured on {machine()}.

{table(header, rows)}"""
    write_section("memory", section)
    print(section)


if __name__ == "__main__":
    main()
