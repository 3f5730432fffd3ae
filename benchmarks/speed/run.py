"""Measures extract, threshold, compress and restore beside the published algorithm and a memory copy.

    python benchmarks/speed/run.py [--entries 67108864] [--threads 1]

One synthetic tensor in memory (and, for whole commands' work, in a file in the page cache), every rival in
the same run on the same data. The published algorithm and numpy get fewer entries, since they are slow.
Writes the section of docs/benchmarks.md.
"""

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zstandard
from safetensors.torch import save_file
from torch import Tensor

from flexswitch.codecs.format.artifact_writer import ArtifactWriter, packed_tensor
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.records import ArtifactHeader, BaseIdentity, MethodRecord
from flexswitch.codecs.storage import EFFORTS, store
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.delta import Delta
from flexswitch.merging.compression.magnitude import kept_blocks
from flexswitch.merging.compression.t_switch import t_switch
from flexswitch.merging.task_vectors.add_task import add_task
from flexswitch.merging.task_vectors.apply import Addend
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.difference import difference
from flexswitch.merging.task_vectors.task_vector import READ_ENTRIES

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import published
from report import machine, table, write_section

WIDTH = 4096
DROP = 0.9
PUBLISHED_ENTRIES, NUMPY_ENTRIES = 1 << 21, 1 << 24
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNKNOWN = BaseIdentity(fingerprint="0" * 64)


def best(work: Callable[[], object], repeats: int = 5) -> float:
    """Returns the least time of some runs, in seconds; the first one only warms up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def weights(entries: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns a base matrix and a fine-tuned one."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(entries, generator=generator) * 0.02
    finetuned = base + torch.randn(entries, generator=generator) * 0.001
    return base.to(dtype).view(-1, WIDTH), finetuned.to(dtype).view(-1, WIDTH)


class Ours:
    """The work of flexswitch on one pair, in memory and between files."""

    def __init__(self, dtype: torch.dtype, entries: int, work: Path, jobs: int) -> None:
        self.base, self.finetuned = weights(entries, dtype)
        self.work, self.jobs = work, jobs
        for name, matrix in (("base", self.base), ("finetuned", self.finetuned)):
            rows = matrix.view(-1, 4096, WIDTH)  # layers of 16 M entries, as models have them
            save_file({f"layers.{i}.weight": rows[i] for i in range(len(rows))}, work / f"{name}.safetensors")

    def blocks(self) -> list[np.ndarray]:
        """Returns the delta by blocks."""
        base, finetuned = self.base.view(-1), self.finetuned.view(-1)
        return [
            difference(base[start : start + READ_ENTRIES], finetuned[start : start + READ_ENTRIES])[0]
            for start in range(0, len(base), READ_ENTRIES)
        ]

    def extract(self) -> None:
        """Computes the delta block by block, and drops each."""
        base, finetuned = self.base.view(-1), self.finetuned.view(-1)
        for start in range(0, len(base), READ_ENTRIES):
            difference(base[start : start + READ_ENTRIES], finetuned[start : start + READ_ENTRIES])

    def artifact(self, effort: str) -> Artifact:
        """Returns an artifact of the whole matrix at one effort."""
        blocks = self.blocks()
        compressed = t_switch(Delta("w", tuple(self.base.shape), lambda: blocks), drop=DROP)
        path = self.work / f"{effort}.fsw"
        header = ArtifactHeader(
            name="w", base=_UNKNOWN, method=MethodRecord(name="t-switch"), parameters=self.base.numel()
        )
        form = store(compressed.sparse, effort=effort)
        with ArtifactWriter(path) as writer:
            writer.add_tensor("w", packed_tensor(compressed.sparse, form, compressed.scale, "F32"))
            writer.finish(header)
        return open_artifact(path)

    def compress_files(self, known: bool) -> None:
        """Compresses one file against the other; `known` says whether the base was hashed before."""
        base, finetuned = (str(self.work / f"{name}.safetensors") for name in ("base", "finetuned"))
        pair = CheckpointPair(HashingCheckpoint(open_checkpoint(base), known), open_checkpoint(finetuned))
        compress(pair, self.work / "o.fsw", "o", "t-switch", {"drop": DROP}, True, jobs=self.jobs)


def measure_published(entries: int) -> dict[str, float]:
    """Returns M parameters a second of the published algorithm's steps."""
    base, finetuned = weights(entries, torch.float32)
    delta = finetuned - base
    signs, scale = published.binarise(delta, DROP)
    flags, payload = published.pack(signs)
    decoded = published.unpack(flags, payload, entries)
    assert torch.equal(decoded, signs.view(-1))
    seconds = {
        "extract": best(lambda: finetuned - base, 3),
        "threshold": best(lambda: published.binarise(delta, DROP), 1),
        "compress": best(lambda: published.pack(published.binarise(finetuned - base, DROP)[0]), 1),
        "decode": best(lambda: published.unpack(flags, payload, entries), 1),
        "restore": best(lambda: base + scale * published.unpack(flags, payload, entries).view_as(base), 1),
    }
    return {step: entries / 1e6 / value for step, value in seconds.items()}


def measure_numpy(entries: int) -> dict[str, float]:
    """Returns M parameters a second of the same steps by numpy's partition and zstandard's bitmask."""
    base, finetuned = (matrix.numpy().reshape(-1) for matrix in weights(entries, torch.float32))
    delta = finetuned - base

    def masks(delta: np.ndarray) -> tuple[np.ndarray, float]:
        kept = np.zeros(len(delta), np.bool_)
        for sign in (1, -1):
            side = sign * delta[sign * delta > 0]
            count = int((1 - DROP) * len(side))
            kept |= sign * delta >= np.partition(side, len(side) - count)[len(side) - count]
        values = delta[kept]
        return kept, float(np.linalg.norm(values) / np.sqrt(len(values)))

    def packed(delta: np.ndarray) -> tuple[bytes, bytes]:
        kept, _ = masks(delta)
        mask = zstandard.ZstdCompressor(level=1).compress(np.packbits(kept).tobytes())
        return mask, np.packbits(delta[kept] > 0).tobytes()

    stored, scale = packed(delta), masks(delta)[1]

    def decoded() -> tuple[np.ndarray, np.ndarray]:
        mask = np.frombuffer(zstandard.ZstdDecompressor().decompress(stored[0]), np.uint8)
        kept = np.unpackbits(mask, count=entries).view(np.bool_)
        signs = np.unpackbits(np.frombuffer(stored[1], np.uint8), count=int(kept.sum()))
        return kept, scale * (2 * signs.astype(np.float32) - 1)

    def restored() -> np.ndarray:
        kept, values = decoded()
        found = base.copy()
        found[kept] += values
        return found

    seconds = {
        "extract": best(lambda: finetuned - base),
        "threshold": best(lambda: masks(delta), 2),
        "compress": best(lambda: packed(finetuned - base), 2),
        "decode": best(decoded, 2),
        "restore": best(restored, 2),
    }
    return {step: entries / 1e6 / value for step, value in seconds.items()}


def measure_ours(dtype: str, entries: int, work: Path, jobs: int) -> dict[str, float]:
    """Returns M parameters a second of each step, and of a copy of the weights."""
    ours = Ours(DTYPES[dtype], entries, work, jobs)
    blocks = ours.blocks()
    artifacts = {effort: ours.artifact(effort) for effort in EFFORTS}
    target, fresh = ours.base.clone(), torch.empty_like(ours.base)
    flat_base, flat_fresh = ours.base.view(-1), fresh.view(-1)

    def restored() -> None:
        addend = Addend(artifacts["fast"], "w", 1.0)
        for start in range(0, entries, READ_ENTRIES):
            block = flat_fresh[start : start + READ_ENTRIES]
            block.copy_(flat_base[start : start + READ_ENTRIES])
            addend.add_to(block)

    seconds = {
        "copy": best(lambda: fresh.copy_(ours.base)),
        "extract": best(ours.extract),
        "threshold": best(lambda: deque(kept_blocks(lambda: blocks, DROP), maxlen=0)),
        "compress": best(lambda: ours.compress_files(known=False)),
        "compress, base known": best(lambda: ours.compress_files(known=True)),
        "decode": best(lambda: artifacts["fast"].sparse("w")),
        "decode small": best(lambda: artifacts["small"].sparse("w"), 2),
        "restore in place": best(lambda: add_task({"w": target}, artifacts["fast"])),
        "restore": best(restored),
    }
    return {step: entries / 1e6 / value for step, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=1 << 26, help="a multiple of 2^24")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    columns = {
        "published": measure_published(PUBLISHED_ENTRIES),
        "numpy + zstd": measure_numpy(NUMPY_ENTRIES),
    }
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            columns[dtype] = measure_ours(dtype, options.entries, Path(folder), options.threads)
    steps = list(columns["float32"])
    rows = []
    for step in steps:
        cells = [f"{column[step]:,.1f}" if step in column else "–" for column in columns.values()]
        rival = columns["published"].get(step.replace(" in place", "").replace(", base known", ""))
        cells.append(f"{columns['float32'][step] / rival:,.0f}×" if rival else "–")
        copied = columns["float32"]["copy"]
        cells.append(f"{columns['float32'][step] / copied:.0%}" if "restore" in step else "–")
        rows.append([step, *cells])
    copy_bandwidth = 8 * columns["float32"]["copy"] / 1e3
    header = ["M parameters a second", *columns, "float32 over published", "of a copy"]
    section = f"""## Speed

    python benchmarks/speed/run.py --entries {options.entries} --threads {options.threads}

T-Switch at drop {DROP} (density {1 - DROP:.1f}), {options.entries / 1e6:.0f} M random entries, threads:
{options.threads}, the best of a few runs. *Compress* is from two files in the page cache to an artifact on
disk, the hash of the base included, *base known* without it; the rivals' is in memory. *Decode* yields
mask and levels, at efforts `fast` and `small`; *restore in place* decodes and adds to live weights,
*restore* takes each block from the base to the output. The published algorithm runs on
{PUBLISHED_ENTRIES / 1e6:.0f} M entries, numpy on {NUMPY_ENTRIES / 1e6:.0f} M. The copy beside it moves
{copy_bandwidth:.0f} GB/s (read and write). Measured on
{machine()}.

{table(header, rows)}"""
    write_section("speed", section)
    print(section)


if __name__ == "__main__":
    main()
