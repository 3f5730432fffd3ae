"""All threads of flexswitch: results in order, disjoint parts of an array, and torch on one thread.

No result depends on how many threads there are.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

DEFAULT_JOBS = os.cpu_count() or 1
DEFAULT_MEMORY = 1_000_000_000
# Bytes of memory per entry while a tensor is coded: mask and levels twice, and the stored form.
WORKING_BYTES = 4
PART_ENTRIES = 1 << 19  # below this many entries a part, waking another thread costs more than it saves


class ParallelMap(Protocol):
    """Calls a function with 0 … count − 1 on several threads."""

    def __call__(self, work: Callable[[int], Result], count: int) -> list[Result]:
        """Returns the results in the order of the numbers."""


def map_in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    jobs: int,
    cost: Callable[[Item], int] = lambda item: 0,
    budget: int = DEFAULT_MEMORY,
) -> Iterator[Result]:
    """Yields the result of each item, in the order of the items. One job runs in the caller's thread.

    cost: the bytes an item needs, its result included. Items in progress need at most `budget` bytes
    together, except that one item always runs.
    """
    if jobs == 1:
        yield from map(work, items)
        return
    waiting: deque[tuple[Future[Result], int]] = deque()
    taken = 0
    pool = ThreadPoolExecutor(jobs)
    try:
        for item in items:
            needed = cost(item)
            while waiting and (taken + needed > budget or len(waiting) >= 2 * jobs):
                future, freed = waiting.popleft()
                yield future.result()
                taken -= freed
            waiting.append((pool.submit(work, item), needed))
            taken += needed
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)


def run_in_parts(work: Callable[[int, int], None], count: int, entries: int) -> None:
    """Calls work(start, stop) for disjoint parts of 0 … count, on at most as many threads as torch uses.

    entries: the number of array entries that all parts touch together. What `work` writes for a number must
    not depend on the part that the number is in.
    """
    import torch

    threads = min(torch.get_num_threads(), count, max(1, entries // PART_ENTRIES))
    if threads <= 1:
        work(0, count)
        return
    ends = [count * part // threads for part in range(threads + 1)]
    others = [_part_pool(threads).submit(work, ends[part], ends[part + 1]) for part in range(1, threads)]
    work(0, ends[1])
    for other in others:
        other.result()


@contextmanager
def parallel_map(jobs: int) -> Iterator[ParallelMap]:
    """Gives a map on `jobs` threads, in each of which torch computes on one thread.

    Sums in torch depend on the number of threads that share them.
    """
    import torch

    threads_before = torch.get_num_threads()
    pool = ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,))

    def run(work: Callable[[int], Result], count: int) -> list[Result]:
        return list(pool.map(work, range(count)))

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_before)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Makes torch compute on one thread, so that sums have the same order on every machine."""
    import torch

    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)


@cache
def _part_pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "flexswitch")
