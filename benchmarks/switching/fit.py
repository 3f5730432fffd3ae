"""Fits the constants of merging/switching/cost_model.py to this machine, and prints them.

    python benchmarks/switching/fit.py --models benchmarks/text8/cache --zoo ZOO

Each is a time over that of a large float32 product, per weight and token, of the shapes that a small encoder
has; those of calls are of that encoder, answering one token. ZOO is any zoo of it.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.switching.activations import Activations
from flexswitch.merging.switching.csr import CsrMatrix
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.float32 import Float32Matrix
from flexswitch.merging.switching.int8 import Int8Matrix
from flexswitch.merging.switching.switched_model import SwitchedModel

SHAPES = ((384, 384), (384, 384), (384, 384), (384, 384), (1536, 384), (384, 1536))
TOKENS, FEW = 1024, 16
MANY = 256  # tasks, whose matrices are more than caches hold
DENSITIES = (0.01, 0.03)  # of sparse rows
MODEL_WEIGHTS = 6 * sum(rows * columns for rows, columns in SHAPES)  # of MiniLM-L6's linear layers


def matrix_of(kind: str, shape: tuple[int, int], density: float) -> DeltaMatrix:
    """Returns a random delta matrix in one of the forms."""
    generator = np.random.default_rng(0)
    codes = generator.choice(np.array([-1, 1], np.int8), shape)
    kept = generator.random(shape) < density
    if kind == "kept":
        columns = np.nonzero(kept)[1].astype(np.uint16)
        starts = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int64)
        return CsrMatrix(shape, starts, columns, codes[kept].astype(np.float32))
    if kind == "code":
        table = (np.arange(256) - 128).astype(np.float32)
        return Int8Matrix(codes * kept, table, 1.0, digits=2)
    return Float32Matrix((codes * kept).astype(np.float32))


def seconds(call: Callable[[], object]) -> float:
    """Returns the median time of a call."""
    call()
    found = []
    for _ in range(15):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def product_seconds(kind: str, tokens: int, density: float = 0.4) -> float:
    """Returns the time of all shapes' products of one task."""
    total = 0.0
    for shape in SHAPES:
        matrix, out = matrix_of(kind, shape, density), np.zeros((tokens, shape[0]), np.float32)
        values = np.random.default_rng(1).normal(size=(tokens, shape[1])).astype(np.float32)
        positions, ones, bias = np.arange(tokens), np.ones(tokens, np.float32), np.zeros(shape[0], np.float32)
        total += seconds(
            lambda matrix=matrix, values=values, positions=positions, ones=ones, bias=bias, out=out: (
                matrix.add_product(Activations(values), positions, ones, bias, out)
            )
        )
    return total


def linear_seconds(tokens: int) -> float:
    """Returns the time of the base's products."""
    pairs = [(torch.randn(tokens, shape[1]), torch.randn(shape)) for shape in SHAPES]
    return sum(
        seconds(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight)) for x, weight in pairs
    )


def held_seconds(tokens: int, tasks: int = 1) -> float:
    """Returns the time of all shapes' products where tokens are gathered, and put back where they were.

    tasks: how many matrices of each shape take turns.
    """
    positions, total = torch.randperm(tokens), 0.0
    for shape in SHAPES:
        x = torch.randn(tokens, shape[1])
        weights = [torch.randn(shape) for _ in range(tasks)]

        def products(x: Tensor = x, weights: list[Tensor] = weights) -> None:
            for weight in weights:
                found = torch.nn.functional.linear(x.index_select(0, positions), weight)
                found.index_select(0, positions)

        total += seconds(products) / tasks
    return total


def added_seconds(tokens: int) -> float:
    """Returns the time that adding up two products of each token takes, for each of them."""
    positions, shares, total = torch.randperm(tokens), torch.rand(tokens, 1), 0.0
    for shape in SHAPES:
        x, out, product = torch.randn(tokens, shape[1]), *torch.randn(2, tokens, shape[0])

        def add(x: Tensor = x, out: Tensor = out, product: Tensor = product) -> None:
            x.index_select(0, positions)
            out.mul_(shares)
            out.index_add_(0, positions, product.mul_(shares))

        total += seconds(add) / 2
    return total


def call_seconds(models: Path, zoo: Path) -> dict[str, float]:
    """Returns the time of another task in a pass for one token, and of making a task's own weights."""
    base = models / "base"
    module = get_adapter(open_checkpoint(str(base)), "hf-encoder").encoder()
    token = {"input_ids": torch.ones(1, 1, dtype=torch.long)}
    opened = open_zoo(zoo)
    fused = SwitchedModel(module, opened, engine="fused", base=base)
    one_hot, shared = torch.eye(len(opened)), torch.full((1, len(opened)), 0.5)
    turns = itertools.cycle(range(len(opened)))
    for number in range(len(opened)):
        fused(token, weights=one_hot[number : number + 1])
    with torch.inference_mode():
        one = seconds(lambda: fused(token, weights=one_hot[:1]))
        all_tasks = seconds(lambda: fused(token, weights=shared))
        made = seconds(lambda: fused._loaded.held.made(((next(turns), 1.0),)))
    return {"task": (all_tasks - one) / (len(opened) - 1), "new_mixture": made}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder with the model directory base")
    parser.add_argument("--zoo", type=Path, required=True, help="a zoo of that base")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sparse products are dealt out to threads by the layer, and here there is none
    weights = sum(rows * columns for rows, columns in SHAPES)
    one = linear_seconds(TOKENS) / (weights * TOKENS)  # seconds a weight and token
    print(f"float32 product: {2e-9 / one:.0f} Gflop/s on one thread")
    thin, thick = (product_seconds("kept", TOKENS, density) / (one * TOKENS) for density in DENSITIES)
    kept = (thick - thin) / (weights * (DENSITIES[1] - DENSITIES[0]))
    side = (thin - kept * weights * DENSITIES[0]) / sum(map(sum, SHAPES))
    print(f"csr_entry: {kept:.1f}\ncsr_side: {side:.0f}")
    for kind, name in (("code", "int8_entry"), ("value", "float32_entry")):
        print(f"{name}: {product_seconds(kind, TOKENS) / (one * weights * TOKENS):.2f}")
    print(f"held_entry: {held_seconds(TOKENS) / (one * weights * TOKENS):.2f}")
    print(f"added_entry: {added_seconds(TOKENS) / (one * weights * TOKENS):.2f}")
    slope = (product_seconds("code", TOKENS) - product_seconds("code", FEW)) / (TOKENS - FEW)
    print(f"task: {max(0.0, product_seconds('code', FEW) - slope * FEW) / (one * weights):.1f}")
    slope = (held_seconds(TOKENS) - held_seconds(FEW)) / (TOKENS - FEW)
    print(f"held_mixture: {max(0.0, held_seconds(FEW, MANY) - slope * FEW) / (one * weights):.1f}")
    calls = call_seconds(options.models, options.zoo)
    print(f"new_mixture: {calls['new_mixture'] / (one * MODEL_WEIGHTS):.0f}")
    print(f"task_calls: {calls['task'] / one:.0e}")


if __name__ == "__main__":
    main()
