"""Compares the search among exemplars with FAISS as shipped, FAISS's approximate indices, and torch.

    python benchmarks/search/run.py [--threads 1]

Tasks of 100 exemplars each: normal clouds around centres that are themselves normal, so far apart
(`--spread`, in widths of a cloud) that neighbours are mostly of the own task, as under a learned metric;
1 is close together. All rivals answer the same queries in turn, in the same run. Needs no data.
Writes the section of docs/benchmarks.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch

from flexswitch.merging.routing.neighbour_search import NeighbourSearch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from report import machine, table, write_section  # a sibling, found by the line above

PER_TASK = 100
APPROXIMATE_BATCH = 64
TASKS, WIDTHS, BATCHES = (8, 64, 256, 1000), (32, 384), (1, 16, 64, 256)
APPROXIMATE_TASKS, SPREADS = (256, 1000, 2000, 4000), (1.0, 2.0)
NEIGHBOURS = 10
RECALLED = 512  # queries that recall is measured on
WANTED_RECALL = 0.99
ENOUGH_SECONDS = 1.0
GRAPH_TASKS = 1000  # HNSW is built for no more: it takes minutes


class Case(NamedTuple):
    """queries: (query, width) float32; true: (query, neighbour) positions of the nearest."""

    queries: np.ndarray
    true: np.ndarray


def exemplars(tasks: int, width: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exemplars (exemplar, width) and queries of the same clouds, float32."""
    generator = np.random.Generator(np.random.PCG64(0))
    centres = spread * generator.normal(size=(tasks, width))
    vectors = np.repeat(centres, PER_TASK, 0) + generator.normal(size=(tasks * PER_TASK, width))
    asked = generator.integers(0, tasks, RECALLED)
    queries = centres[asked] + generator.normal(size=(RECALLED, width))
    return vectors.astype(np.float32), queries.astype(np.float32)


def medians(rivals: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Returns each rival's median milliseconds of processor time; they take turns.

    A rival hears the number of its turn, to ask other queries than in the turn before.
    """
    for work in rivals.values():
        work(0)
    times: dict[str, list[float]] = {name: [] for name in rivals}
    began = time.perf_counter()
    while min(map(len, times.values())) < 7 or (
        time.perf_counter() - began < ENOUGH_SECONDS and len(times[next(iter(times))]) < 300
    ):
        for name, work in rivals.items():
            turn = len(times[name])
            started = time.process_time()  # other work may run on the machine meanwhile
            work(turn)
            times[name].append(time.process_time() - started)
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


def exact_rivals(vectors: np.ndarray, queries: np.ndarray, batch: int) -> dict[str, Callable[[int], object]]:
    """Returns ours, FAISS's flat index as its wheel ships it, and a product with a selection in torch."""
    ours = NeighbourSearch(vectors, approximate_from=sys.maxsize)
    flat = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors)
    weights = torch.from_numpy(vectors)
    squares = (weights * weights).sum(1)

    def asked(turn: int) -> np.ndarray:
        start = turn * batch % (len(queries) - batch + 1)
        return queries[start : start + batch]

    def by_torch(turn: int) -> object:
        product = torch.addmm(squares, torch.from_numpy(asked(turn)), weights.T, alpha=-2)
        return product.topk(NEIGHBOURS, largest=False)

    return {
        "ours": lambda turn: ours.search(asked(turn), NEIGHBOURS),
        "FAISS as shipped": lambda turn: flat.search(asked(turn), NEIGHBOURS),
        "torch": by_torch,
    }


def measure_exact(tasks: int, width: int) -> list[list[str]]:
    """Returns a row of the table for each batch."""
    vectors, queries = exemplars(tasks, width, SPREADS[-1])
    rows = []
    for batch in BATCHES:
        found = medians(exact_rivals(vectors, queries, batch))
        rivals = [value for name, value in found.items() if name != "ours"]
        quicker = min(rivals) / found["ours"]
        cells = [f"{value:.3g}" for value in found.values()]
        rows.append([f"{tasks:,}", f"{len(vectors):,} × {width}", str(batch), *cells, f"{quicker:.2g}×"])
        print(" | ".join(rows[-1]), flush=True)
    return rows


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Returns the share of the true neighbours that were found."""
    shared = [len(set(one) & set(other)) for one, other in zip(found.tolist(), true.tolist(), strict=True)]
    return sum(shared) / true.size


def tuned(choose: Callable[[int], None], index: faiss.Index, efforts: Sequence[int], case: Case) -> str:
    """Leaves an approximate index at the least effort that reaches the recall; returns recall and effort."""
    for effort in efforts:
        choose(effort)
        reached = recall(index.search(case.queries, NEIGHBOURS)[1], case.true)
        if reached >= WANTED_RECALL:
            break
    return f"{reached:.3f} ({effort})"


def ivf_index(vectors: np.ndarray) -> faiss.Index:
    """Returns FAISS's inverted file of about 4 √n lists."""
    width = vectors.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, int(4 * len(vectors) ** 0.5))
    index.cp.max_points_per_centroid = 64
    index.train(vectors)
    index.add(vectors)
    return index


def hnsw_index(vectors: np.ndarray) -> faiss.Index:
    """Returns FAISS's graph of 32 neighbours a vector."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32)
    index.add(vectors)
    return index


def measure_approximate(tasks: int, spread: float) -> list[str]:
    """Returns a row: milliseconds of each search, then each one's recall and the seconds of its building."""
    vectors, queries = exemplars(tasks, WIDTHS[0], spread)
    exact = NeighbourSearch(vectors, approximate_from=sys.maxsize)
    case = Case(queries, exact.search(queries, NEIGHBOURS).positions)
    seconds, made = {}, {}
    builders = {"ours": lambda: NeighbourSearch(vectors), "ivf": lambda: ivf_index(vectors)}
    if tasks <= GRAPH_TASKS:
        builders["hnsw"] = lambda: hnsw_index(vectors)
    for name, build in builders.items():
        started = time.process_time()
        made[name] = build()
        seconds[name] = time.process_time() - started
    ivf, hnsw = made["ivf"], made.get("hnsw")
    recalls = {
        "ours": f"{recall(made['ours'].search(queries, NEIGHBOURS).positions, case.true):.3f}",
        "ivf": tuned(lambda effort: setattr(ivf, "nprobe", effort), ivf, [2**n for n in range(9)], case),
    }
    if hnsw is not None:
        efforts = [2**n for n in range(4, 10)]
        recalls["hnsw"] = tuned(lambda effort: setattr(hnsw.hnsw, "efSearch", effort), hnsw, efforts, case)
    searches = {"exact": exact, **made}
    parts = np.array_split(queries, len(queries) // APPROXIMATE_BATCH)
    found = medians(
        {
            name: lambda turn, search=search: search.search(parts[turn % len(parts)], NEIGHBOURS)
            for name, search in searches.items()
        }
    )
    names = ("exact", "ours", "ivf", "hnsw")
    cells = [f"{tasks:,}", f"{spread:g}", *(f"{found[name]:.3g}" if name in found else "–" for name in names)]
    for name in names[1:]:
        cells += [recalls[name], f"{seconds[name]:.1f}"] if name in recalls else ["–", "–"]
    print(" | ".join(cells), flush=True)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    exact = [row for width in WIDTHS for tasks in TASKS for row in measure_exact(tasks, width)]
    approximate = [measure_approximate(tasks, spread) for spread in SPREADS for tasks in APPROXIMATE_TASKS]
    exact_header = [
        "tasks",
        "exemplars × width",
        "batch",
        "ours",
        "FAISS as shipped",
        "torch",
        "better rival over ours",
    ]
    approximate_header = ["tasks", "spread", "exact", "ours", "IVF", "HNSW", "recall of ours", "built in s",
                          "of IVF (probes)", "built in s", "of HNSW (depth)", "built in s"]  # fmt: skip
    section = f"""## Search

    python benchmarks/search/run.py --threads {options.threads}

The {NEIGHBOURS} nearest of {PER_TASK} exemplars a task: milliseconds of processor time a batch, medians of
runs that take turns, threads: {options.threads}. *Ours* finds candidates by FAISS with matrix products,
compares them in float64 and proves that none was missed: an answer is the same alone and in any batch, of
equal distances the smaller position first. *FAISS as shipped* is its flat index, whose wheel takes products
from 128,000 entries of a batch on; *torch* is `addmm` and `topk`. Their float32 distances can change with the
batch.

{table(exact_header, exact)}

Of very many exemplars, width {WIDTHS[0]}, batch {APPROXIMATE_BATCH}: our exact search; what a query index
takes (*ours*: FAISS's IVF from 200,000 exemplars on, if it finds 99 % of the exemplars' own neighbours; else
the exact search); and FAISS's IVF and HNSW at the least effort that reaches a recall of
{WANTED_RECALL}, or else the largest tried. *Spread*: how far apart the tasks' centres are, in widths of a
task.

{table(approximate_header, approximate)}

Measured on {machine()}, faiss-cpu {version("faiss-cpu")}."""
    write_section("search", section)
    print(section)


if __name__ == "__main__":
    main()
