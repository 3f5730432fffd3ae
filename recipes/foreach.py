"""Repeats a step: the values that `foreach` gives its names, and texts with {name} in them."""

import csv
import glob
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import InputError, unknown_name

_MOST_REPETITIONS, _LONGEST_TEXT = 100_000, 10_000
_NAME = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def combinations(foreach: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the values of all names, once for each repetition; the first name changes slowest.

    `table: FILE.csv` gives a name for each column; `{glob: PATTERN}` gives a name the last part of each
    path, and name.path the path. Raises: InputError on a file or pattern that gives nothing.
    """
    parts: list[list[dict[str, str]]] = []
    for name, values in foreach.items():
        if isinstance(values, str):
            parts.append(_rows(Path(values)))
        elif isinstance(values, list):
            parts.append([{name: value} for value in values])
        else:
            paths = matching_files(values["glob"])
            if not paths:
                raise InputError(f"'foreach/{name}': no path matches '{values['glob']}'")
            parts.append([{name: Path(path).name, f"{name}.path": path} for path in paths])
    if (count := math.prod(map(len, parts))) > _MOST_REPETITIONS:
        raise InputError(
            f"'foreach' repeats the step {count:,} times, expected {_MOST_REPETITIONS:,} at most"
        )
    found = []
    for chosen in itertools.product(*parts):
        merged: dict[str, str] = {}
        for part in chosen:
            if twice := sorted(set(merged) & set(part)):
                raise InputError(f"'foreach' gives the name '{twice[0]}' twice")
            merged |= part
        found.append(merged)
    return found


def matching_files(pattern: str) -> list[str]:
    """Returns the paths that match a pattern, sorted."""
    return sorted(path.rstrip("/") for path in glob.glob(pattern))


def fill(value: Any, values: Mapping[str, str]) -> Any:
    """Returns a value with {name} replaced in all of its texts; {{ and }} stand for braces.

    Raises: InputError on an unknown name, and a text that becomes very long.
    """
    letters = 0

    def replacement(match: re.Match[str]) -> str:
        nonlocal letters
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in values:
            raise InputError(
                f"{unknown_name('value of foreach', match[1], values)}; write {{{{ for a brace itself"
            )
        letters += len(values[match[1]])
        if letters > _LONGEST_TEXT:
            raise InputError(f"a text becomes longer than {_LONGEST_TEXT:,} letters by its names in braces")
        return values[match[1]]

    if isinstance(value, str):
        return _NAME.sub(replacement, value) if "{" in value or "}" in value else value
    if isinstance(value, list):
        return [fill(each, values) for each in value]
    if isinstance(value, dict):
        return {fill(key, values): fill(each, values) for key, each in value.items()}
    return value


def _rows(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a table. Raises: InputError naming the line."""
    if not path.is_file():
        raise InputError(f"{path}: no such table")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, [])
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError as reason:
        raise InputError(f"{path}: no such table") from reason
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise InputError(f"{path}: is no table of comma-separated values ({reason})") from reason
    if not names or len(set(names)) != len(names) or not all(name.strip() == name != "" for name in names):
        raise InputError(f"{path}, line 1: expected the names of the columns, each once")
    for line, row in rows:
        if len(row) != len(names):
            raise InputError(f"{path}, line {line}: has {len(row)} values, expected {len(names)}")
    if not rows:
        raise InputError(f"{path}: has no row below the names of its columns")
    return [dict(zip(names, row, strict=True)) for _, row in rows]
