"""Reads which share of a recipe a machine runs."""

import os
import re

from flexswitch.codecs.errors import UsageError

_NUMBERS = (  # variables with the share's number and the number of shares, and what the first number is
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("SKYPILOT_JOB_RANK", "SKYPILOT_NUM_JOBS", None),
)


def read_share(text: str) -> tuple[int, int]:
    """Returns a share's number, from 1, and how many there are, from I/N or "auto". Raises: UsageError."""
    if text == "auto":
        return _from_environment()
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, or auto")
    return int(match[1]), int(match[2])


def _from_environment() -> tuple[int, int]:
    for number, count, first in _NUMBERS:
        if number in os.environ and count in os.environ:
            try:
                start = int(os.environ.get(first, "0")) if first else 0
                found = int(os.environ[number]) - start + 1, int(os.environ[count])
            except ValueError as reason:
                raise UsageError(f"--shard auto: {number} or {count} is no whole number") from reason
            if 1 <= found[0] <= found[1]:
                return found
            raise UsageError(f"--shard auto: {number} is outside the range that {count} gives")
    names = " or ".join(f"{number} with {count}" for number, count, _ in _NUMBERS)
    raise UsageError(f"--shard auto: the environment has neither {names}; give I/N")
