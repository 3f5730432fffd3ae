"""Threads for pieces of work whose results do not depend on their number: each runs torch on one thread."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")


class Each(Protocol):
    """Calls a function for 0 … count − 1 on several threads."""

    def __call__(self, work: Callable[[int], Result], count: int) -> list[Result]:
        """Returns the results in the order of the numbers."""


@contextmanager
def workers(jobs: int) -> Iterator[Each]:
    """Gives that many threads for as long as it lasts.

    Sums inside torch depend on how many threads share them, so a piece of work never shares its own.
    """
    threads_before = torch.get_num_threads()
    pool = ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,))

    def each(work: Callable[[int], Result], count: int) -> list[Result]:
        return list(pool.map(work, range(count)))

    try:
        yield each
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_before)
