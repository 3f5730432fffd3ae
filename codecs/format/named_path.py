"""A path that may have a task's name before it: `TASK=PATH`."""

import re
from pathlib import Path

from flexswitch.codecs.format.fields import TASK_NAME


def split_named_path(given: str | Path) -> tuple[str | None, str]:
    """Returns the task and the path of `TASK=PATH`.

    Of any other text, and of one that is itself a path that exists, it returns None and the text.
    """
    text = str(given)
    name, equals, path = text.partition("=")
    if not equals or not re.fullmatch(TASK_NAME, name) or Path(text).exists():
        return None, text
    return name, path
