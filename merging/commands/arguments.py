"""Checks of arguments that several commands share."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from flexswitch.codecs.errors import UsageError, check_choice
from flexswitch.codecs.format.records import TASK_NAME
from flexswitch.merging.checkpoints.pairing import Resize, Selection
from flexswitch.merging.task_vectors.task_name import task_name

StoredDtype = Literal["float32", "bfloat16"]
OutputDtype = Literal["float32", "bfloat16", "float16"]


def selection(include: Sequence[str], exclude: Sequence[str], on_resize: Resize) -> Selection:
    """Returns which tensors are taken. Raises: UsageError."""
    check_choice("--on-resize", on_resize, Resize)
    return Selection(tuple(include), tuple(exclude), on_resize)


def check_suffix(output: Path, suffix: str) -> None:
    """Raises: UsageError where an output's name does not end in a suffix."""
    if not output.name.endswith(suffix):
        raise UsageError(f"-o {output}: expected a file name that ends in {suffix}")


def new_task_name(name: str | None, output: Path) -> str:
    """Returns the given name, or else the output's stem. Raises: UsageError where it cannot name a file."""
    chosen = task_name(output) if name is None else name
    if not re.fullmatch(TASK_NAME, chosen):
        raise UsageError(
            f"task name '{chosen}': expected letters, digits, '.', '_' and '-', a letter or digit first; "
            "give one with --name"
        )
    return chosen
