"""Compiles functions that loop over bits or weights.

The machine code is cached on disk, so that only the first call ever waits for the compiler. The functions
release the GIL. Without fast-math nothing is reordered, so that results are the same on every machine.
"""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Returns a function that numba compiles on its first call; `py_func` is the original."""
    return cast(Function, njit(cache=True, nogil=True)(function))
