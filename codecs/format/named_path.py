"""A path that may have a task's name before it: `TASK=PATH`."""

import re
from pathlib import Path

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.fields import TASK_NAME, check_task_name


def split_named_path(given: str | Path) -> tuple[str | None, str]:
    """Returns the task and the path of `TASK=PATH`.

    Of any other text, and of one that is itself a path that exists, it returns None and the text. Raises:
    UsageError where the name is none that a task may have.
    """
    text = str(given)
    name, equals, path = text.partition("=")
    is_named = re.fullmatch(TASK_NAME, name) or (path and Path(path).exists())
    if not equals or not is_named or Path(text).exists():
        return None, text
    try:
        return check_task_name(name), path
    except ValueError as reason:
        raise UsageError(f"{text}: the task's name '{name}': {reason}") from reason
