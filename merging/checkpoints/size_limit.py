"""Stops the making of a model that is much larger than the checkpoint whose weights it is to take."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

# A tensor may be in a model several times before it is tied, and buffers such as masks are not stored.
_TIMES_ENTRIES, _FREE_ENTRIES = 4, 1 << 26
_TIMES_MODULES, _FREE_MODULES = 16, 2000


class TooLargeError(Exception):
    """A model is too large for its checkpoint."""


@contextmanager
def size_limit(stored_tensors: int, stored_entries: int) -> Iterator[None]:
    """Raises: TooLargeError as soon as modules have far more tensors, or layers, than are stored."""
    most_entries = _TIMES_ENTRIES * stored_entries + _FREE_ENTRIES
    most_modules = _TIMES_MODULES * stored_tensors + _FREE_MODULES
    found = {"modules": 0, "entries": 0}

    def on_module(parent: nn.Module, name: str, added: Any) -> None:
        found["modules"] += 1
        if found["modules"] > most_modules:
            raise TooLargeError(f"more than {most_modules:,} layers, for {stored_tensors:,} stored tensors")

    def on_tensor(parent: nn.Module, name: str, added: Tensor | None) -> None:
        found["entries"] += 0 if added is None else added.numel()
        if found["entries"] > most_entries:
            raise TooLargeError(f"more than {most_entries:,} weights, for {stored_entries:,} stored ones")

    with ExitStack() as stack:
        for register, hook in (
            (hooks.register_module_module_registration_hook, on_module),
            (hooks.register_module_parameter_registration_hook, on_tensor),
            (hooks.register_module_buffer_registration_hook, on_tensor),
        ):
            stack.callback(register(hook).remove)
        yield
