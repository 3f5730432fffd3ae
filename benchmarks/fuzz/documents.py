"""Changes of JSON documents at any depth, and of bytes, for the fuzzing targets that read documents."""

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

Change = Callable[[bytes], bytes]

NUMBERS = (
    0, 1, 2, 7, 9, 255, 1 << 17, (1 << 20) + 1, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, -1,
    10**30, -0.0, 0.5, 1e308, 1e999, float("nan"),
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    None, True, False, 1.0, 1e39, "", "U8", "\ud800", "\0", "../a", "a\x1b[31m[/x]", "ab" * 32, "9" * 5000,
    "x" * 70_000, [], {}, [1], [0, 5], [[]], {"a": {}}, ["bert"],
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (holder, key) of each value inside a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def change_value(document: Any, words: Sequence[Any], draw: random.Random) -> Any:
    """Returns a document with one value or key changed, removed, moved or nested.

    words: keys and values that the reader knows.
    """
    root = {"": document}
    found = list(places(root))
    holder, key = draw.choice(found[1:] or found)
    value, action = holder[key], draw.randrange(10)
    if action == 0:
        del holder[key]
    elif action == 1:
        other, name = draw.choice(found)
        holder[key] = copy.deepcopy(other[name])
    elif action == 2:
        holder[key] = copy.deepcopy(draw.choice(OTHERS))
    elif action == 3 and isinstance(holder, dict):
        holder[draw.choice([*map(str, words), "", "\ud800"])] = holder.pop(key)
    elif action == 4:
        holder[key] = [copy.deepcopy(value)] * draw.choice((0, 1, 2, 100))
    elif action == 5:
        for _ in range(draw.choice((1, 3, 60, 2000))):
            value = [value] if draw.random() < 0.5 else {draw.choice(("a", *map(str, words))): value}
        holder[key] = value
    elif isinstance(value, dict):
        value[draw.choice([*map(str, words), ""])] = copy.deepcopy(draw.choice([*words, *OTHERS, *NUMBERS]))
    elif isinstance(value, list):
        holder[key] = value[:-1] if action < 7 else [*value, *copy.deepcopy(value[-1:] or [1])]
    elif isinstance(value, int) and action < 8:
        holder[key] = draw.choice((value - 1, value + 1, 2 * value, -value, value ^ 1 << draw.randrange(20)))
    else:
        holder[key] = draw.choice((*NUMBERS, *words))
    return root.get("")


def mutate_json(data: bytes, words: Sequence[Any], draw: random.Random, change: Change) -> bytes:
    """Returns a JSON document with some values changed, or now and then with changed bytes."""
    if draw.randrange(8) == 0:
        return change(data)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return change(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        with suppress(RecursionError):
            document = change_value(document, words, draw)
    try:
        return json.dumps(document, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    except RecursionError:
        return change(data)
