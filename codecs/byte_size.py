"""Reads sizes as people write them."""

import re
from contextlib import suppress

from pydantic import ByteSize, TypeAdapter, ValidationError

from flexswitch.codecs.errors import UsageError


def parse_size(text: str) -> int:
    """Returns the bytes of a size such as 5GB, 2.5KB or 12345. Raises: UsageError.

    >>> parse_size("5GB")
    5000000000
    """
    size = 0
    if re.fullmatch(r"\d*\.?\d+ ?[A-Za-z]*", text):  # pydantic ignores what follows the number and its unit
        with suppress(ValidationError):
            size = TypeAdapter(ByteSize).validate_python(text)
    if size <= 0:
        raise UsageError(f"size '{text}': expected a number of bytes above 0, such as 5GB, 2.5KB or 12345")
    return int(size)
