"""Measures stored sizes against Shannon's bound: i.i.d. masks, and the deltas of fine-tuned models.

    python benchmarks/storage/run.py --models DIR

DIR holds `base` and one folder a task, as benchmarks/text8/train.py writes them. Each is compressed by
T-Switch at three drop rates and packed at both efforts. Writes the section of docs/benchmarks.md.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flexswitch.codecs.flag4 import Flag4
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, packed_tensor
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.records import ArtifactHeader, BaseIdentity, MethodRecord
from flexswitch.codecs.format.tensor_sizes import NOTHING, tensor_sizes
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.codecs.sparse import SparseStats, SparseTensor, shannon_bits
from flexswitch.codecs.storage import EFFORTS, store

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import machine, table, write_section

DENSITIES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.03, 0.01, 0.003, 0.001)
DROPS = (0.6, 0.9, 0.97)
SHAPE = (4096, 4096)


def golomb_bytes(gaps: np.ndarray, kept: int, entries: int) -> int:
    """Returns the bytes of Golomb-coded gaps and signs, as ComPEFT computes them: no file, no blocks."""
    density = min(kept / entries, 1 - 1 / (2 * entries))
    divisor = max(1, math.ceil(-math.log(2 - density) / math.log1p(-density)))
    width = math.ceil(math.log2(divisor)) if divisor > 1 else 0
    short = (1 << width) - divisor  # remainders below this take a bit less
    quotients, remainders = gaps // divisor, gaps % divisor
    bits = int((quotients + 1 + width).sum(dtype=np.int64)) - int((remainders < short).sum())
    return -(-(bits + kept) // 8)


def random_tensor(density: float) -> SparseTensor:
    """Returns a tensor whose entries are kept independently of one another, its signs fair coins."""
    generator = np.random.default_rng(round(1e6 * density))
    marked = generator.random(SHAPE, np.float32) < density
    kept = int(np.count_nonzero(marked))
    mask = np.packbits(marked, bitorder="little")
    return SparseTensor(SHAPE, mask, generator.integers(0, 2, kept).astype(np.uint8), 1)


@dataclass(frozen=True)
class Sizes:
    """Bytes of one tensor in an artifact at each effort, of its header, and of the rivals."""

    payload: dict[str, int]
    overhead: int
    rivals: dict[str, int]
    shannon: float


def measure_random(density: float, work: Path) -> Sizes:
    """Returns the sizes of one random tensor, written as an artifact."""
    sparse = random_tensor(density)
    stats = SparseStats(sparse)
    payload, overhead = {}, 0
    for effort in EFFORTS:
        base = BaseIdentity(fingerprint="0" * 64)
        header = ArtifactHeader(
            name="random", base=base, method=MethodRecord(name="t-switch"), parameters=sparse.layout.entries
        )
        with ArtifactWriter(work / "random.fsw") as writer:
            writer.add_tensor("w", packed_tensor(sparse, store(sparse, effort=effort), 1.0, "F32"))
            writer.finish(header)
        artifact = open_artifact(work / "random.fsw")
        payload[effort] = artifact.header.tensors["w"].size
        overhead = artifact.path.stat().st_size - payload[effort]
    sizes = tensor_sizes(artifact, "w")
    rivals = {
        "2025 form": Flag4().estimate_bytes(stats),
        "grouped COO": sizes.codecs["grouped-coo"],
        "zstd of the bitmask": sizes.codecs["bitmask-zstd"],
        "Golomb": golomb_bytes(sparse.gaps, sparse.layout.kept, sparse.layout.entries),
    }
    return Sizes(payload, overhead, rivals, shannon_bits(sparse.layout) / 8)


def over(size: float, bound: float) -> str:
    """Returns how much larger a size is than its bound."""
    return f"{100 * (size / bound - 1):+.2f} %"


def random_table(work: Path) -> str:
    """Returns the table of i.i.d. masks."""
    rows = []
    for density in DENSITIES:
        found = measure_random(density, work)
        cells = [over(found.payload[effort], found.shannon) for effort in EFFORTS]
        cells.append(over(min(found.payload.values()) + found.overhead, found.shannon))
        rows.append([f"{density:g}", *cells, *(over(size, found.shannon) for size in found.rivals.values())])
    header = ["density", *EFFORTS, "file", "2025 form", "grouped COO", "zstd of the bitmask", "Golomb"]
    return table(header, rows)


def zoo_rows(models: Path, drop: float, work: Path) -> list[list[str]]:
    """Compresses every task at a drop rate, packs a zoo at each effort, and returns their rows."""
    tasks = sorted(path.parent.name for path in models.glob("*/model.safetensors"))
    tasks.remove("base")
    files = []
    for task in tasks:
        files.append(str(work / f"{task}.fsw"))
        run("compress", str(models / task), "--base", str(models / "base"), "-o", files[-1],
            "--method", "t-switch", "--set", f"drop={drop}", "--overwrite")  # fmt: skip
    rows = []
    for effort in EFFORTS:
        path = work / f"{drop}-{effort}"
        run("pack", *files, "-o", str(path), "--effort", effort)
        zoo, total, header_bytes, tensors, golomb = open_zoo(path), NOTHING, 0, 0, 0
        for artifact in zoo.values():
            for name in artifact.header.tensors:
                total += tensor_sizes(artifact, name)
                sparse = artifact.sparse(name)
                golomb += golomb_bytes(sparse.gaps, sparse.layout.kept, sparse.layout.entries)
            stored = sum(record.whole_size for record in artifact.header.tensors.values())
            header_bytes += artifact.path.stat().st_size - stored - artifact.extra_bytes()
            tensors += len(artifact.header.tensors)
        rows.append([
            f"drop {drop}, `{effort}`",
            f"{total.stored / len(tasks) / 1e3:,.1f}",
            f"{total.stored / total.shannon:.3f}",
            f"{header_bytes / tensors:.0f} B",
            f"{total.published / total.stored:.2f}×",
            f"{total.codecs['grouped-coo'] / total.stored:.2f}×",
            f"{total.codecs['bitmask-zstd'] / total.stored:.2f}×",
            f"{golomb / total.stored:.2f}×",
        ])  # fmt: skip
    return rows


def run(*arguments: str) -> None:
    """Runs one flexswitch command."""
    subprocess.run(["flexswitch", *arguments, "--quiet"], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of `base` and of fine-tuned tasks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = [row for drop in DROPS for row in zoo_rows(options.models, drop, work)]
        random = random_table(work)
    header = [
        "zoo",
        "kB a task",
        "of Shannon",
        "header a tensor",
        "2025 form",
        "grouped COO",
        "zstd of the bitmask",
        "Golomb",
    ]
    section = f"""## Stored sizes

    python benchmarks/storage/run.py --models DIR

**Real deltas.** Eight MiniLM fine-tunes (benchmarks/text8), T-Switch. *Of Shannon*: all blocks over the sum
of each tensor's n·H₂(kept/n) + kept; row flags are in, headers apart. Rivals as multiples of ours, row flags
lent to grouped COO and zstd.

{table(header, rows)}

**I.i.d. masks**, {SHAPE[0]} × {SHAPE[1]}, over Shannon's bound. *File*: the smaller one with its whole
container. Golomb: sizes computed as ComPEFT does, no file behind them. Measured on {machine()}.

{random}"""
    write_section("storage", section)
    print(section)


if __name__ == "__main__":
    main()
