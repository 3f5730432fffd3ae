"""The folder in which zoos are attacked, and the commands that write in it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file
from support.commands import write_base, write_finetuned

from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.extract import extract
from flexswitch.merging.commands.index import index
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.pack import pack

TASKS = ("red", "blue", "green")
PER_TASK = 6


def make_folder(folder: Path) -> None:
    """Makes a base, two versions of three tasks' artifacts, an indexed zoo of two, and a feature file."""
    base = write_base(folder / "base.safetensors")
    (folder / "data").mkdir()
    for number, task in enumerate((*TASKS, "newer-red", "newer-blue")):
        write_finetuned(folder / f"{task}.safetensors", base, seed=number + 1)
        compress(
            folder / f"{task}.safetensors", folder / f"{task}.fsw", base=folder / "base.safetensors",
            name=task.removeprefix("newer-"), method="t-switch",
        )  # fmt: skip
    for task in TASKS:
        (folder / "data" / f"{task}.train.jsonl").write_text('{"text": "one two"}\n' * PER_TASK)
    features = {f"{task}.train": np.eye(PER_TASK, dtype=np.float32) + len(task) for task in TASKS}
    save_file(features, folder / "features.safetensors")
    pack([folder / "red.fsw", folder / "blue.fsw"], folder / "zoo")
    (folder / "data" / "green.train.jsonl").rename(folder / "green.train.jsonl")
    index_zoo(folder)
    merge([folder / "zoo"], folder / "model", base=folder / "base.safetensors", method="average")


def index_zoo(folder: Path, per_task: int = 5, **options: bool) -> None:
    """Indexes the zoo with the features of a file, which need no model."""
    index(
        folder / "zoo", base=folder / "base.safetensors", exemplars=folder / "data",
        features=str(folder / "features.safetensors"), per_task=per_task, normalise="none",
        metric="euclidean", **options,
    )  # fmt: skip


class Scene(NamedTuple):
    """A command that writes `output`. prepare: makes the state before it; again: what recovers after a kill."""

    name: str
    output: str
    command: Callable[[Path], object]
    again: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None


def _add_green(folder: Path) -> None:
    pack([folder / "green.fsw"], folder / "zoo", add=True)


def _green_to_index(folder: Path) -> None:
    _add_green(folder)
    (folder / "green.train.jsonl").rename(folder / "data" / "green.train.jsonl")


def _no_index(folder: Path) -> None:
    pack([folder / "red.fsw", folder / "blue.fsw"], folder / "zoo", overwrite=True)


def _change_nothing(folder: Path) -> None:
    pack([], folder / "zoo", add=True)


def _merge(output: str, method: str, overwrite: bool = False) -> Callable[[Path], object]:
    return lambda folder: merge(
        [folder / "zoo"], folder / output, base=folder / "base.safetensors", method=method, overwrite=overwrite,
        max_shard_size=2000,
    )  # fmt: skip


def _compress(output: str, overwrite: bool = False) -> Callable[[Path], object]:
    return lambda folder: compress(
        folder / "green.safetensors", folder / output, base=folder / "base.safetensors", name="green",
        method="p-discard", settings={"drop": 0.5}, overwrite=overwrite,
    )  # fmt: skip


def _extract(overwrite: bool = False) -> Callable[[Path], object]:
    return lambda folder: extract(
        folder / "base.safetensors", folder / "green.safetensors", folder / "green.tv.safetensors",
        overwrite=overwrite,
    )  # fmt: skip


def _pack(names: list[str], output: str, **options: bool) -> Callable[[Path], object]:
    return lambda folder: pack([folder / f"{name}.fsw" for name in names], folder / output, **options)


def _share(output: str, overwrite: bool = False) -> Callable[[Path], object]:
    return lambda folder: pack(
        [folder / f"{task}.safetensors" for task in ("red", "green")], folder / output, share="rtvq",
        base=folder / "base.safetensors", overwrite=overwrite,
    )  # fmt: skip


SCENES = [
    Scene("pack", "new", _pack(["red", "green"], "new"), _pack(["red", "green"], "new", overwrite=True)),
    Scene(
        "pack --overwrite", "zoo", _pack(["newer-red", "green"], "zoo", overwrite=True),
        _pack(["newer-red", "green"], "zoo", overwrite=True),
    ),
    Scene("pack --share", "new", _share("new"), _share("new", True)),
    Scene("pack --share --overwrite", "zoo", _share("zoo", True), _share("zoo", True)),
    Scene("pack --add", "zoo", _add_green, _change_nothing),
    Scene(
        "pack --add --overwrite", "zoo", _pack(["newer-red", "newer-blue"], "zoo", add=True, overwrite=True),
        _change_nothing,
    ),
    Scene("pack --remove", "zoo", lambda folder: pack([], folder / "zoo", remove=["blue"]), _change_nothing),
    Scene("index", "zoo", index_zoo, lambda folder: index_zoo(folder, overwrite=True), _no_index),
    Scene(
        "index --overwrite", "zoo", lambda folder: index_zoo(folder, 3, overwrite=True),
        lambda folder: index_zoo(folder, 3, overwrite=True),
    ),
    Scene("index --add", "zoo", lambda folder: index_zoo(folder, add=True), _change_nothing, _green_to_index),
    Scene("compress", "new.fsw", _compress("new.fsw"), _compress("new.fsw", True)),
    Scene("compress --overwrite", "green.fsw", _compress("green.fsw", True), _compress("green.fsw", True)),
    Scene("extract", "green.tv.safetensors", _extract(), _extract(True)),
    Scene("merge", "merged", _merge("merged", "average"), _merge("merged", "average", True)),
    Scene(
        "merge --overwrite", "model", _merge("model", "task-arithmetic", True),
        _merge("model", "task-arithmetic", True),
    ),
]  # fmt: skip


def fresh(template: Path, folder: Path) -> Path:
    """Puts a copy of a folder in the place of another."""
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(template, folder, symlinks=True)
