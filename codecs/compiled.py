"""Compiles functions that loop over bits or weights.

The machine code is cached on disk, so that only the first call ever waits for the compiler. The functions
release the GIL. Without fast-math nothing is reordered, so that results are the same on every machine.

Loading numba takes longer than the work on small inputs. The functions that these reach ask `few`, and where
that says so they compute the same bits with numpy.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., object])


class Allowance:
    """How many entries numpy may still pass over in this process."""

    def __init__(self, entries: float) -> None:
        self.left = entries


NUMPY = Allowance(1 << 24)  # entries take numpy a fifth of the time that loading numba does
_MOST = 1 << 18  # entries at once
_CALL = 1 << 12  # entries that take as long as a call does


def few(entries: int) -> bool:
    """Returns whether numpy is to pass over so many entries, because numba would take longer to load.

    All passes count together, so that a process with more to do soon loads numba.
    """
    cost = entries + _CALL
    if entries > _MOST or cost > NUMPY.left:
        return False
    NUMPY.left -= cost
    return True


def compiled(function: Function) -> Function:
    """Returns a function that numba compiles on its first call; `py_func` is the original."""
    return cast(Function, _Compiled(function))


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Returns a view that cannot be written to, as numba compiles anew for arrays that can."""
    view = array.view()
    view.flags.writeable = False
    return view


class _Compiled:
    """A function that loads numba when it is first called, with all compiled functions of its file."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.py_func = function

    def __call__(self, *arguments: Any) -> Any:
        """Returns what the compiled function returns."""
        return self._dispatcher(*arguments)

    @functools.cached_property
    def _dispatcher(self) -> Callable[..., Any]:
        from numba import njit

        names = self.py_func.__globals__
        with _LOADING:  # a compiled function calls others by the names of its file
            for name, value in list(names.items()):
                if isinstance(value, _Compiled):
                    names[name] = njit(cache=True, nogil=True, no_cfunc_wrapper=True)(value.py_func)
        found: Callable[..., Any] = names[self.py_func.__name__]
        return found


_LOADING = threading.Lock()
