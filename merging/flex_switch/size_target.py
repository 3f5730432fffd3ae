"""Reads a target size."""

import re

from flexswitch.codecs.byte_size import parse_size
from flexswitch.codecs.errors import UsageError


def target_bytes(text: str, parameters: int) -> int:
    """Returns the bytes of `400KB`, `0.5%` of float32, or `0.16bpp` (bits per parameter). Raises: UsageError.

    >>> target_bytes("0.5%", 1_000_000), target_bytes("0.16bpp", 1_000_000), target_bytes("400KB", 1)
    (20000, 20000, 400000)
    """
    share = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%|bpp)", text)
    if share is None:
        try:
            return parse_size(text)
        except UsageError as reason:
            raise UsageError(
                f"target size '{text}': expected bytes (400KB), a share of float32 (0.5%) or bits "
                "per parameter (0.16bpp)"
            ) from reason
    bits = float(share[1]) * (0.32 if share[2] == "%" else 1)
    return round(bits * parameters / 8)
