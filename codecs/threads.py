"""Runs independent pieces of work on threads, in order, within a budget of memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

DEFAULT_JOBS = os.cpu_count() or 1
DEFAULT_MEMORY = 1_000_000_000
# What each entry of a tensor in the making may take: mask and levels twice over, and the stored form.
WORKING_BYTES = 4


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    jobs: int,
    cost: Callable[[Item], int],
    budget: int,
) -> Iterator[Result]:
    """Yields the result of each item in the order of the items, whatever the number of threads.

    cost: the bytes that an item may take, its result included; those of all items in the making stay
    within `budget`, but one item is always let in. With one job everything runs in the caller's thread.
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
