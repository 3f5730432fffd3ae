"""Measures `lossless` against XOR with byte planes and zstd, and against fireworks-delta-compression.

    python benchmarks/lossless/run.py --models DIR [--tasks NAME...]
    python benchmarks/lossless/run.py --models OUT --hard [--tasks SUITE/NAME...]

DIR holds `base` and one folder a task, as benchmarks/text8/train.py writes them; OUT is that of
benchmarks/hard/make.py. Each pair is cast to every floating dtype. The steps of reinforcement learning are
simulated: Adam in float32 on the base's weights, of which the trainer sends bfloat16 copies. The rival's
column is empty where its package is not installed. Writes a section of docs/benchmarks.md.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zstandard
from safetensors.torch import load_file
from torch import Tensor

from flexswitch.codecs.format.exact_forms import PackedExact, packed_exact, unpacked_block
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES
from flexswitch.merging.task_vectors.exact_tensors import number_bytes, stored_ranges

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import machine, table, write_section

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
THREADS = 2
RIVAL_FORMS = ("arc_v2", "arc_v3", "xor_one_to_one_zstd")
EASY_TASKS = ("ag_news", "banking77", "cola")
HARD_TASKS = ("text8/ag_news", "text8/banking77", "digits/turned", "ani/ani-1ccx", "chgnet/r2scan")
PREFIXES = ("bert.", "vit.")  # of a fine-tuned model's names before those of its base
STEPS, RATE, BETAS = 10, 3e-6, (0.9, 0.95)

RIVAL = "fireworks"
UNDER = ["under XOR planes", f"under {RIVAL}"]
HEADER = ["pair", "dtype", "changed", "MB", "bits", "XOR planes", RIVAL, "lossless", *UNDER, "decode MB/s"]
EXPLAINED = f"""MB are 10^6 bytes; *bits* are those of an entry as `lossless` stores it.
*XOR planes*: the XOR of the two in byte planes, each in a zstandard frame of level 9. *fireworks*: the PyPI
package fireworks-delta-compression, the smallest of its forms {", ".join(RIVAL_FORMS)}.
Every block was decoded on {THREADS} threads, its checksum included, and compared; MB/s: processor time."""

Pairs = list[tuple[Tensor, Tensor]]


class Sizes(NamedTuple):
    """Bytes of all tensors of a pair; seconds to decode them on two threads; the share of changed entries."""

    plain: int
    planes: int
    rival: int | None
    ours: int
    seconds: float
    entries: int
    changed: int


def planes_bytes(base: bytes, found: bytes, width: int) -> int:
    """Returns the bytes of the XOR of two tensors, plane by plane in zstandard frames of level 9."""
    xor = np.frombuffer(base, np.uint8) ^ np.frombuffer(found, np.uint8)
    frames = [
        zstandard.ZstdCompressor(level=9).compress(plane.tobytes()) for plane in xor.reshape(-1, width).T
    ]
    return sum(min(len(frame), len(xor) // width) for frame in frames)


def rival_bytes(base: Tensor, found: Tensor) -> int | None:
    """Returns the bytes of the rival's smallest form, None if it is not installed."""
    try:
        from fireworks_delta_compression import delta_compress
    except ImportError:
        return None
    sizes = []
    for form in RIVAL_FORMS:
        stored, _ = delta_compress(src=base, dst=found, compression_format=form)
        sizes.append(stored.numel() * stored.element_size())
    return min(sizes)


def measure(pairs: Pairs) -> Sizes:
    """Returns the sizes of tensors; everything is decoded and compared."""
    packed: list[tuple[Tensor, Tensor, PackedExact]] = []
    planes = ours = plain = changed = 0
    rival: int | None = 0
    for base, found in pairs:
        dtype, width = DTYPE_NAMES[found.dtype], found.element_size()
        flat = base.reshape(-1), found.reshape(-1)
        blocks = [
            (number_bytes(flat[0][start:stop], dtype), number_bytes(flat[1][start:stop], dtype))
            for start, stop in stored_ranges(tuple(found.shape))
        ]
        stored = packed_exact(tuple(found.shape), dtype, blocks)
        packed.append((base, found, stored))
        whole = number_bytes(base, dtype), number_bytes(found, dtype)
        changed += int((flat[0].view(torch.uint8) != flat[1].view(torch.uint8)).view(-1, width).any(1).sum())
        plain, planes = plain + len(whole[0]), planes + planes_bytes(*whole, width)
        each = rival_bytes(base, found)
        rival = None if each is None or rival is None else rival + each
        ours += len(stored.data) + len(stored.record.model_dump_json()) // 4  # about what the table takes
    seconds = min(decode_seconds(packed) for _ in range(3))
    return Sizes(plain, planes, rival, ours, seconds, sum(found.numel() for _, found in pairs), changed)


def decode_seconds(packed: list[tuple[Tensor, Tensor, PackedExact]]) -> float:
    """Returns the processor seconds of each of two threads that decode all blocks."""
    jobs: list[tuple[PackedExact, int, bytes, bytes, bytes]] = []
    for base, found, stored in packed:
        offset, dtype = 0, stored.record.dtype
        for index, (start, stop) in enumerate(stored_ranges(tuple(found.shape))):
            data = stored.data[offset : offset + stored.record.blocks[index].size]
            offset += len(data)
            numbers = [number_bytes(each.reshape(-1)[start:stop], dtype) for each in (base, found)]
            jobs.append((stored, index, data, numbers[0], numbers[1]))

    def work(job: tuple[PackedExact, int, bytes, bytes, bytes]) -> bool:
        return unpacked_block(job[0].record, job[1], job[2], job[3]) == job[4]

    with ThreadPoolExecutor(THREADS) as pool:
        before = time.process_time()
        same = all(pool.map(work, jobs))
        seconds = (time.process_time() - before) / THREADS  # other work on the machine does not count
    if not same:
        raise SystemExit("a block does not come back")
    return seconds


def read_pair(folder: Path) -> Pairs:
    """Returns the weights that a fine-tuned model shares with the `base` beside it."""
    base, found = (read_weights(each) for each in (folder.parent / "base", folder))
    return [
        (tensor, found[name])
        for name, tensor in base.items()
        if tensor.is_floating_point() and name in found and found[name].shape == tensor.shape
    ]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns a model's weights by the names that its base has for them."""
    weights = load_file(folder / "model.safetensors")
    for prefix in PREFIXES:
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def adam_steps(weights: list[Tensor]) -> Iterator[tuple[int, Pairs]]:
    """Yields (step, bfloat16 weights before and after it) of a run with noisy gradients."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    master = [weight + 2.0**-9 * weight.abs() * (torch.rand(weight.shape, generator=generator) - 0.5)
              for weight in weights]  # fmt: skip
    drift = [noise(weight) for weight in weights]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    sent = [weight.to(torch.bfloat16) for weight in master]
    for step in range(1, STEPS + 1):
        for weight, mean, square, pull in zip(master, first, second, drift, strict=True):
            gradient = noise(weight) + 0.3 * pull
            mean.lerp_(gradient, 1 - BETAS[0])
            square.lerp_(gradient.square(), 1 - BETAS[1])
            means, squares = mean / (1 - BETAS[0] ** step), square / (1 - BETAS[1] ** step)
            weight -= RATE * means / (squares.sqrt() + 1e-8)
        after = [weight.to(torch.bfloat16) for weight in master]
        if step in (1, STEPS):
            yield step, list(zip(sent, after, strict=True))
        sent = after


def share(less: int, more: int | None) -> str:
    """Returns by how much something is smaller, in percent."""
    return "" if more is None else f"{100 * (1 - less / more):.1f} %"


def pair_row(task: str, dtype: torch.dtype, pairs: Pairs) -> list[str]:
    """Returns one pair's row in one dtype."""
    found = measure([(base.to(dtype), after.to(dtype)) for base, after in pairs])
    return [
        task,
        str(dtype).removeprefix("torch."),
        f"{100 * found.changed / found.entries:.0f} %",
        f"{found.plain / 1e6:.1f}",
        f"{8 * found.ours / found.entries:.2f}",
        f"{found.planes / 1e6:.2f}",
        "" if found.rival is None else f"{found.rival / 1e6:.2f}",
        f"{found.ours / 1e6:.2f}",
        share(found.ours, found.planes),
        share(found.ours, found.rival),
        f"{found.plain / found.seconds / 1e6:,.0f}",
    ]


def step_row(step: int, pairs: Pairs) -> list[str]:
    """Returns the row of one step of Adam: bits a changed entry."""
    found = measure(pairs)
    sizes: list[Any] = [found.planes, found.rival, found.ours]
    return [
        str(step),
        f"{100 * found.changed / found.entries:.2f} %",
        *("" if size is None else f"{8 * size / max(1, found.changed):.2f}" for size in sizes),
        f"{found.plain / found.ours:,.0f}×",
        f"{found.plain / found.seconds / 1e6:,.0f}",
    ]


def pair_rows(models: Path, tasks: Sequence[str]) -> list[list[str]]:
    """Returns the rows of pairs, each in every dtype."""
    rows = []
    for task in tasks:
        pairs = read_pair(models / task)
        rows += [pair_row(task, dtype, pairs) for dtype in DTYPES]
        print(table(HEADER, rows[-len(DTYPES) :]), flush=True)
    return rows


def easy_section(models: Path, tasks: Sequence[str]) -> str:
    """Returns the section on easy fine-tunes and on steps of reinforcement learning."""
    rows = pair_rows(models, tasks)
    weights = [base for base, _ in read_pair(models / tasks[0]) if base.numel() > 1 << 16]
    steps = [step_row(step, pairs) for step, pairs in adam_steps(weights[3:9])]  # matrices of two layers
    stepped = ["step", "changed", "XOR planes", RIVAL, "lossless", "of bfloat16", "decode MB/s"]
    return f"""## Fine-tuned weights bit for bit

    python benchmarks/lossless/run.py --models DIR

MiniLM fine-tunes (benchmarks/text8) and their base, cast to each dtype; the weights that both hold.
{EXPLAINED}
Measured on {machine()}.

{table(HEADER, rows)}

**Weights sent during reinforcement learning**, simulated: Adam at {RATE:g} on float32 weights, of which
bfloat16 copies are sent after each step. Bits a changed entry.

{table(stepped, steps)}"""


def hard_section(models: Path, tasks: Sequence[str]) -> str:
    """Returns the section on hard pairs."""
    rows = pair_rows(models, tasks)
    return f"""## Hard pairs bit for bit

    python benchmarks/lossless/run.py --models OUT --hard

The pairs of benchmarks/hard/make.py, cast to each dtype; the weights that both hold.
{EXPLAINED}
Measured on {machine()}.

{table(HEADER, rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of `base` and of fine-tuned tasks")
    parser.add_argument(
        "--hard", action="store_true", help="--models is the folder of benchmarks/hard/make.py"
    )
    parser.add_argument("--tasks", nargs="+", help="names of tasks [default: some]")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    tasks = options.tasks or (HARD_TASKS if options.hard else EASY_TASKS)
    section = (hard_section if options.hard else easy_section)(options.models, tasks)
    write_section("lossless-hard" if options.hard else "lossless", section)
    print(section)


if __name__ == "__main__":
    main()
