"""How the passes over bits and weights are compiled.

The machine code is kept on disk (README, "Compiled code"), so only the first call ever waits for it.
Other threads run meanwhile, and nothing is reordered: no fast-math, so results are the same everywhere.
"""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Returns the function compiled by numba on its first call; its `py_func` is the plain one."""
    return cast(Function, njit(cache=True, nogil=True)(function))
