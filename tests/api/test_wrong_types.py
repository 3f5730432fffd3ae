"""Every public function called with a value of a wrong type names the argument, and says what it expects."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import message

import flexswitch
from flexswitch.codecs.errors import UsageError

PATH = "a path as a text or a pathlib.Path"
WRONG: list[Any] = [
    None,
    3,
    2.5,
    True,
    ["zoo"],
    {"zoo": 1},
    object(),
    np.zeros(2),
    torch.zeros(2),
    len,
]


def parts(zoo: Path) -> dict[str, Any]:
    """Returns arguments of right types."""
    opened = flexswitch.open_zoo("zoo")
    return {
        "base": "base.safetensors",
        "artifact": opened["red"],
        "zoo": opened,
        "weights": dict(flexswitch.restore("base.safetensors", opened["red"], 0.0)),
        "module": torch.nn.Linear(2, 2),
    }


CALLS: dict[str, Any] = {
    "open_zoo: path": lambda right, wrong: flexswitch.open_zoo(wrong),
    "open_artifact: path": lambda right, wrong: flexswitch.open_artifact(wrong),
    "open_checkpoint: source": lambda right, wrong: flexswitch.open_checkpoint(wrong),
    "restore: base": lambda right, wrong: flexswitch.restore(wrong, right["artifact"]),
    "restore: task": lambda right, wrong: flexswitch.restore(right["base"], wrong),
    "add_task: weights": lambda right, wrong: flexswitch.add_task(wrong, right["artifact"]),
    "add_task: artifact": lambda right, wrong: flexswitch.add_task(right["weights"], wrong),
    "SwitchedModel: module": lambda right, wrong: flexswitch.SwitchedModel(wrong, right["zoo"]),
    "SwitchedModel: zoo": lambda right, wrong: flexswitch.SwitchedModel(right["module"], wrong),
    "extract: base=": lambda right, wrong: flexswitch.extract(wrong, "red.safetensors", "o.tv.safetensors"),
    "compress: ": lambda right, wrong: flexswitch.compress(wrong, "o.fsw", base=right["base"]),
    "pack: artifacts=": lambda right, wrong: flexswitch.pack([wrong], "other"),
    "merge: sources=": lambda right, wrong: flexswitch.merge(
        [wrong], "o", base=right["base"], method="average"
    ),
    "index: zoo=": lambda right, wrong: flexswitch.index(wrong, base=right["base"], exemplars="."),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_type_is_named(call: str, zoo: Path) -> None:
    right = parts(zoo)
    for wrong in WRONG:
        found = message(UsageError, lambda: CALLS[call](right, wrong))  # noqa: B023
        assert found.startswith(call)
        assert len(found) < 400


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("restore", {"lambda_": "1"}),
        ("restore", {"lambda_": float("nan")}),
        ("add_task", {"lambda_": None}),
        ("add_task", {"base": 3}),
        ("SwitchedModel", {"router": "zoo"}),
        ("SwitchedModel", {"lambda_": "1"}),
        ("SwitchedModel", {"cache_bytes": "1GB"}),
        ("SwitchedModel", {"rename": {}}),
        ("SwitchedModel", {"base": b"base"}),
    ],
)
def test_a_wrong_option_is_named(call: str, arguments: dict[str, Any], zoo: Path) -> None:
    right, names = parts(zoo), {"restore": ("base", "artifact"), "add_task": ("weights", "artifact")}
    first = [right[each] for each in names.get(call, ("module", "zoo"))]
    ((name, _),) = arguments.items()
    found = message(UsageError, lambda: getattr(flexswitch, call)(*first, **arguments))
    assert found.startswith(f"{call}: {name} is ")


def test_the_message_says_what_was_found_and_what_is_expected(zoo: Path) -> None:
    wrong: Any = "red.fsw"
    assert message(UsageError, lambda: flexswitch.restore("base.safetensors", wrong)) == (
        "restore: task is 'red.fsw', expected what open_artifact returns, or zoo[task]"
    )
    wrong = ["zoo"]
    assert message(UsageError, lambda: flexswitch.open_zoo(wrong)) == (
        f"open_zoo: path is of the type list, expected {PATH}"
    )
    assert message(UsageError, lambda: flexswitch.open_zoo("a\0b")).startswith("open_zoo: path is 'a")
