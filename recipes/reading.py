"""Reads the YAML of recipes: texts, numbers, true, false and null, in lists and under keys that are texts."""

import re
from pathlib import Path
from typing import Any

import yaml

from flexswitch.codecs.errors import InputError
from flexswitch.merging.commands.yaml_values import check_values, refused

MOST_BYTES = 1_000_000
_LARGEST_DIGITS = 18
_TAG = "tag:yaml.org,2002:"
_NOT_RESOLVED = tuple(f"{_TAG}{name}" for name in ("timestamp", "merge", "bool", "int", "float"))
# The core schema of YAML 1.2, where `no` is a text, 010 is ten and 1e3 a number.
_CORE = {
    "bool": (r"true|false", "tf"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses tags and keys that are no texts."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise refused(
                f"the tag '{event.tag.replace(_TAG, '!!')}' is not used in recipes; leave it out", event
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag != f"{_TAG}str":
                named = f"'{key.value}'" if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise refused(f"the key, {named}, is no text; put it in quotes", key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _LARGEST_DIGITS:
            count = len(node.value)
            raise refused(f"a whole number of {count} digits, expected {_LARGEST_DIGITS} at most", node)
        return int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10))


# Without dates and merged keys (<<), which are then texts.
_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] not in _NOT_RESOLVED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)


def read_yaml(path: Path) -> Any:
    """Returns the document of a recipe. Raises: InputError naming the line."""
    if not path.is_file():
        raise InputError(f"{path}: no such recipe")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise InputError(f"{path}: has {size:,} bytes, and a recipe has {MOST_BYTES:,} at most; divide it")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        check_values(path, node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as reason:
        line = f", line {reason.problem_mark.line + 1}" if reason.problem_mark else ""
        raise InputError(f"{path}{line}: is not a recipe's YAML ({reason.problem})") from reason
    except OSError as reason:
        raise InputError(f"{path}: cannot be read ({reason.strerror})") from reason
    except RecursionError as reason:
        raise InputError(f"{path}: is nested too deeply; a recipe has six levels") from reason
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as reason:
        raise InputError(f"{path}: is not YAML ({' '.join(str(reason).split())})") from reason
