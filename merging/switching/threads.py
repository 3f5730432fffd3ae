"""Compiled passes on as many threads as torch uses, each on its own part of the output."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_WORTH = 1 << 19  # touched entries below which waking another thread costs more than it saves


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "flexswitch")


def in_parts(work: Callable[[int, int], None], count: int, entries: int) -> None:
    """Calls work(start, stop) over 0 … count in parts that are disjoint; `entries` tells how much it is.

    What `work` writes for one number may not depend on the part that the number is in.
    """
    threads = min(torch.get_num_threads(), count, max(1, entries // _WORTH))
    if threads <= 1:
        work(0, count)
        return
    ends = [count * part // threads for part in range(threads + 1)]
    others = [_pool(threads).submit(work, ends[part], ends[part + 1]) for part in range(1, threads)]
    work(0, ends[1])
    for other in others:
        other.result()
