"""How tasks are stored as one vector that they share and a small part each. Source: docs/methods.md §6.30."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from flexswitch.codecs.threads import WORKING_BYTES
from flexswitch.merging.compression.delta import Compressed, Delta
from flexswitch.merging.static.task_deltas import Combination, TensorDeltas
from flexswitch.merging.task_vectors.task_vector import TaskVector

Compress = Callable[[Delta], Compressed]
Bits = Annotated[
    Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, 32],
    Field(description="Bits of a shared value: evenly spaced levels up to 8, bfloat16, or float32."),
]


@dataclass(frozen=True)
class SharedForm:
    """How tasks are stored as one shared vector and a small part each.

    rule: how a task's own values meet the shared ones, see `SharedRecord`. unify: a tensor's deltas → the
    shared one. compress_shared: how that is stored. own: (task vector, shared vector, jobs) → how the task's
    tensors are stored; with the rule "sum" the task vector is what the shared one leaves of it.
    is_open: whether further tasks can be stored by a shared vector that was made without them.
    corrects: whether that is left of the shared vector as it is stored, and not as it was before.
    entry_bytes: memory for each entry of a task's tensor while it is stored.
    """

    rule: Literal["sum", "product"]
    unify: Callable[[TensorDeltas], Combination]
    compress_shared: Compress
    own: Callable[[TaskVector, TaskVector, int], Compress]
    is_open: bool = False
    corrects: bool = True
    entry_bytes: int = WORKING_BYTES
