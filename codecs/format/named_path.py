"""A path that may have a task's name before it: `TASK=PATH`."""

import re
from pathlib import Path

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.fields import TASK_NAME, check_task_name


def split_named_path(given: str | Path) -> tuple[str | None, str]:
    """Returns the task and the path of `TASK=PATH`.

    Of any other text, and of one that is itself a path that exists, it returns None and the text. Raises:
    UsageError where what stands before a path that exists is no task's name.
    """
    text = str(given)
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, text
    if re.fullmatch(TASK_NAME, name):
        return name, path
    if path and Path(path).exists():
        try:
            check_task_name(name)
        except ValueError as reason:
            raise UsageError(f"{text}: the task's name '{name}': {reason}") from reason
    return None, text
