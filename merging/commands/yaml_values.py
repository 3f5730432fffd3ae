"""What is checked in a YAML file: a few aliases may stand for far more than it holds, and a key for two."""

from pathlib import Path
from typing import Any

import yaml

from flexswitch.codecs.errors import InputError

MOST_VALUES = 100_000
MOST_LETTERS = 10_000_000


def check_values(path: Path, root: yaml.Node) -> None:
    """Checks that a document has few values and letters, each alias counted as what it stands for.

    Raises: InputError; yaml.MarkedYAMLError where a text holds what no text has, or a key stands twice.
    """
    pending, count, letters = [root], 0, 0
    while pending:
        node, count = pending.pop(), count + 1
        if isinstance(node, yaml.ScalarNode):
            letters += len(node.value)
            if "\0" in node.value or any("\ud800" <= letter <= "\udfff" for letter in node.value):
                raise refused("a text holds a NUL or half a surrogate pair, which no text has", node)
        elif isinstance(node, yaml.MappingNode):
            pending += [part for pair in node.value for part in pair]
            seen = set()
            for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
                if key.value in seen:
                    raise refused(f"key {key.value!r:.80} is repeated", key)
                seen.add(key.value)
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
        if count > MOST_VALUES or letters > MOST_LETTERS:
            raise InputError(
                f"{path}: has more than {MOST_VALUES:,} values or {MOST_LETTERS:,} letters, each alias (*) "
                "counted as what it stands for; divide it"
            )


def refused(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """Returns the error of a problem at a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
