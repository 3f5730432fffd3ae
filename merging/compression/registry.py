"""The compression methods by name; adding one is its file, its line here and a test."""

from collections.abc import Callable

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.merging.compression.compressed import Compressed
from flexswitch.merging.compression.p_discard import p_discard
from flexswitch.merging.compression.t_switch import t_switch

METHODS: dict[str, Callable[..., Compressed]] = {
    "t-switch": t_switch,
    "p-discard": p_discard,
}


def get_method(name: str) -> Callable[..., Compressed]:
    """Returns the compression method of that name. Raises: UsageError."""
    if name not in METHODS:
        raise UsageError(unknown_name("compression method", name, METHODS))
    return METHODS[name]
