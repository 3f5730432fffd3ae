"""Arguments of the command functions: each is checked by its annotation before any work starts."""

from pathlib import Path
from typing import Any

import pytest

import flexswitch
from flexswitch.codecs.errors import InputError, UsageError


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("compress", {"include": "encoder*"}, "include='encoder*'"),
        ("compress", {"jobs": 0}, "jobs=0"),
        ("compress", {"jobs": -1}, "jobs=-1"),
        ("compress", {"checkpoint_every": 0}, "checkpoint_every=0"),
        ("compress", {"per_task": 0}, "per_task=0"),
        ("compress", {"settings": ["drop"]}, "settings=['drop']"),
        ("compress", {"on_resize": "cut"}, "on_resize='cut'"),
        ("extract", {"exclude": "pooler*"}, "exclude='pooler*'"),
        ("extract", {"dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_a_wrong_argument_is_named(command: str, arguments: dict[str, Any], named: str, models: Path) -> None:
    paths = {
        "compress": ("red.safetensors", "out.fsw"),
        "extract": ("base.safetensors", "red.safetensors", "out.tv.safetensors"),
    }[command]
    base = {"base": "base.safetensors"} if command == "compress" else {}
    with pytest.raises(UsageError) as error:
        getattr(flexswitch, command)(*paths, **base, **arguments)
    assert str(error.value).startswith(f"{command}: {named}: ")
    assert "\n" not in str(error.value)
    assert not (models / paths[-1]).exists()


@pytest.mark.parametrize("rank", [0, -3])
def test_an_index_has_a_rank_of_at_least_one(rank: int, zoo: Path) -> None:
    with pytest.raises(UsageError, match=rf"^index: rank={rank}: "):
        flexswitch.index("zoo", base="base.safetensors", exemplars=".", rank=rank)


def test_one_artifact_or_task_is_no_list_of_them(zoo: Path) -> None:
    with pytest.raises(UsageError, match=r"^pack: artifacts='red.fsw': "):
        flexswitch.pack("red.fsw", "other")
    with pytest.raises(UsageError, match=r"^pack: remove='red': "):
        flexswitch.pack([], "zoo", remove="red")
    with pytest.raises(UsageError, match=r"^merge: sources='zoo': "):
        flexswitch.merge("zoo", "out", base="base.safetensors", method="average")


def test_sizes_are_bytes_or_texts_as_on_the_command_line(zoo: Path) -> None:
    merged = flexswitch.merge(["zoo"], "out", base="base.safetensors", task="red", max_shard_size="1KB")
    assert len(list(merged.path.glob("*.safetensors"))) >= 1
    with pytest.raises(UsageError, match="size 'much'"):
        flexswitch.compress("red.safetensors", "a.fsw", base="base.safetensors", memory="much")


def test_a_zoo_without_tasks_is_not_merged(zoo: Path) -> None:
    flexswitch.pack([], "zoo", remove=["red", "blue"])
    with pytest.raises(InputError, match="holds no task"):
        flexswitch.merge(["zoo"], "out", base="base.safetensors", method="average")
