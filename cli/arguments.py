"""Turns option texts into checked values."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.codecs.format.records import TASK_NAME
from flexswitch.merging.checkpoints.pairing import Selection
from flexswitch.merging.task_vectors.task_name import task_name


def new_task_name(name: str | None, output: Path) -> str:
    """Returns the name given, or the output's stem. Raises: UsageError where it can't name a file."""
    chosen = task_name(output) if name is None else name
    if not re.fullmatch(TASK_NAME, chosen):
        raise UsageError(
            f"task name '{chosen}': expected letters, digits, '.', '_' and '-', a letter or digit first; "
            "give one with --name"
        )
    return chosen


def choice(option: str, value: str, known: Sequence[str]) -> Any:
    """Returns the value if it is a known one. Raises: UsageError naming those there are."""
    if value not in known:
        raise UsageError(f"{option}: {unknown_name('choice', value, known)}")
    return value


def selection(include: list[str] | None, exclude: list[str] | None, on_resize: str) -> Selection:
    """Returns the selection that the options ask for. Raises: UsageError."""
    resize = choice("--on-resize", on_resize, ("refuse", "extra", "rows"))
    return Selection(tuple(include or ()), tuple(exclude or ()), resize)
