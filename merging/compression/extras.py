"""How a task's own tensors are stored beside its compressed ones: exactly, or rounded."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, get_args

from flexswitch.codecs.errors import UsageError, check_choice
from flexswitch.codecs.format.extra_forms import (
    Float16,
    PackedExtra,
    QuantisedRows,
    packed_extra,
    rounded_extra,
)

if TYPE_CHECKING:
    from flexswitch.merging.task_vectors.task_vector import TaskVector

Extras = Literal["exact", "float16", "int8", "auto"]
_WIDTHS = (8, 6, 4)  # that `auto` chooses from
_SHARE = 1 / 3  # of a target size, which rounded extras may take while a narrower width is left


def pack_extras(
    vector: "TaskVector", names: Iterable[str], extras: str, target: int | None = None
) -> dict[str, PackedExtra]:
    """Returns a task's own tensors, and its files, as they are stored, by name.

    Floating tensors of two or more dimensions are rounded to float16, to levels of 8 bits with a scale for
    each row (`int8`), or to the widest of 8, 6 and 4 bits with which they take at most a third of `target`
    bytes (`auto`); all others are exact.
    """
    from flexswitch.merging.task_vectors.side_files import stored_extras

    raw = dict(stored_extras(vector, names))
    if extras == "exact":
        return {name: packed_extra(tensor) for name, tensor in raw.items()}
    if extras == "float16":
        return {name: rounded_extra(tensor, Float16()) for name, tensor in raw.items()}
    packed: dict[str, PackedExtra] = {}
    for bits in _WIDTHS:
        packed = {name: rounded_extra(tensor, QuantisedRows(bits)) for name, tensor in raw.items()}
        if extras == "int8" or target is None or extra_bytes(packed) <= _SHARE * target:
            break
    return packed


def extra_bytes(packed: Mapping[str, PackedExtra]) -> int:
    """Returns the bytes of extras as they are stored."""
    return sum(len(each.data) for each in packed.values())


def describe_extras(packed: Mapping[str, PackedExtra]) -> str | None:
    """Returns what the user should know of rounded extras, None if all are exact."""
    forms = {
        f"{each.record.form.settings['bits']} bits" if each.record.form.settings else each.record.form.name
        for each in packed.values()
        if each.record.form.name in (Float16.name, QuantisedRows.name)
    }
    if not forms:
        return None
    return (
        f"the task's own tensors (its head) are rounded to {' and '.join(sorted(forms))} and take "
        f"{extra_bytes(packed):,} bytes; --extras exact keeps them as they are"
    )


def check_extras(extras: str | None, method: str, meets_size: bool) -> Extras:
    """Returns the given choice, or else `auto` if the artifact is to meet a size. Raises: UsageError."""
    if extras is None:
        return "auto" if meets_size else "exact"
    check_choice("--extras", extras, Extras)
    if method == "lossless" and extras != "exact":
        raise UsageError(f"--extras {extras}: lossless stores everything exactly; leave it out")
    return next(choice for choice in get_args(Extras) if choice == extras)
