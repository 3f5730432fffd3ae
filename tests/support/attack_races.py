"""Lets two or three processes write at the same moment, and looks for lost changes."""

import collections
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from support.attack_scenes import fresh, index_zoo, make_folder
from support.attacks import Ending, Started, draws, listing, run, state

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.commands.verify import verify

Writer = Callable[[], object]


def attack(tries: int) -> dict[str, Any]:
    """Returns the tries and the failures, by kind of race."""
    kinds = [_changes, _creators, _replacers, _outputs, _indexers]
    counts: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "made").mkdir()
        make_folder(root / "made")
        for number, draw in draws(tries):
            race = kinds[0] if number % 2 else kinds[1 + number // 2 % 4]
            problem = race(fresh(root / "made", root / "work"), draw)
            counts[race.__name__.strip("_")] += 1
            if problem:
                failures.append(f"{race.__name__}, try {number}: {problem}")
    return {"attack": "races", "tries": tries, "counts": counts, "failures": failures}


def together(writers: list[Writer], draw: Random) -> list[Ending]:
    """Runs functions in forked processes that begin at one moment, in any order."""
    draw.shuffle(writers)
    gate, opened = os.pipe()

    def waiting(writer: Writer) -> Writer:
        def begin() -> None:
            os.close(opened)
            os.read(gate, 1)  # until the other end is closed
            writer()

        return begin

    started = [Started(waiting(writer)) for writer in writers]
    os.close(opened)
    endings = [each.wait() for each in started]
    os.close(gate)
    return endings


def _changes(folder: Path, draw: Random) -> str:
    """Two or three writers change a zoo: each change is found in the end."""
    zoo, made = folder / "zoo", {name: folder / f"{name}.fsw" for name in ("green", "newer-red")}
    writers = {
        "add": lambda: pack([made["green"]], zoo, add=True),
        "replace": lambda: pack([made["newer-red"]], zoo, add=True, overwrite=True),
        "remove": lambda: pack([], zoo, remove=["blue"]),
    }
    chosen = draw.sample(sorted(writers), draw.choice([2, 3]))
    endings = together([writers[name] for name in chosen], draw)
    if any(ending.status != 0 for ending in endings):
        return str(endings)
    found = open_zoo(zoo)
    present = (
        {"red"} | ({"green"} if "add" in chosen else set()) | (set() if "remove" in chosen else {"blue"})
    )
    if set(found) != present:
        return f"{chosen} gave {list(found)}"
    replaced = found.record.tasks["red"] != open_zoo(folder.parent / "made" / "zoo").record.tasks["red"]
    if replaced != ("replace" in chosen):
        return f"{chosen}: red is {'replaced' if replaced else 'as it was'}"
    return _whole(zoo)


def _creators(folder: Path, draw: Random) -> str:
    """Two or three writers make one new zoo: one does, and the others say that it exists."""
    zoo, names = folder / "new", draw.sample(["red", "blue", "green"], draw.choice([2, 3]))
    endings = together([lambda name=name: pack([folder / f"{name}.fsw"], zoo) for name in names], draw)  # type: ignore[misc]
    errors = [ending.message for ending in endings if ending.status != 0]
    if len(errors) != len(names) - 1 or not all(
        "give another output, or --overwrite" in text for text in errors
    ):
        return str(endings)
    return _whole(zoo) or _clean(folder, ".new.*")


def _replacers(folder: Path, draw: Random) -> str:
    """Two or three writers replace and change a zoo: it is one of their whole results."""
    zoo = folder / "zoo"
    writers: list[Writer] = [
        lambda: pack([folder / "red.fsw", folder / "blue.fsw", folder / "green.fsw"], zoo, overwrite=True),
        lambda: pack([folder / "newer-red.fsw", folder / "newer-blue.fsw"], zoo, overwrite=True),
        lambda: pack([folder / "newer-red.fsw"], zoo, add=True, overwrite=True),
    ]
    endings = together(draw.sample(writers, draw.choice([2, 3])), draw)
    if any(ending.status != 0 for ending in endings):
        return str(endings)
    if not {"red", "blue"} <= set(open_zoo(zoo)):
        return f"holds {list(open_zoo(zoo))}"
    return _whole(zoo)


def _indexers(folder: Path, draw: Random) -> str:
    """Two writers index a zoo and one replaces a task: the index and the task are both new."""
    zoo, before = folder / "zoo", open_zoo(folder / "zoo").record
    writers: list[Writer] = [
        lambda: index_zoo(folder, 3, overwrite=True),
        lambda: index_zoo(folder, 4, overwrite=True),
        lambda: pack([folder / "newer-red.fsw"], zoo, add=True, overwrite=True),
    ]
    endings = together(writers, draw)
    if any(ending.status != 0 for ending in endings):
        return str(endings)
    after = open_zoo(zoo).record
    if after.index is None or after.index.per_task not in (3, 4) or after.tasks["red"] == before.tasks["red"]:
        return f"holds {after}"
    return _whole(zoo)


def _outputs(folder: Path, draw: Random) -> str:
    """Two or three writers replace one file: it is one of their whole results, and nothing else is left."""
    path, results = folder / "green.fsw", []
    densities = draw.sample([0.2, 0.5, 0.8], draw.choice([2, 3]))

    def write(drop: float) -> None:
        compress(
            folder / "green.safetensors", path, base=folder / "base.safetensors", name="green",
            method="p-discard", settings={"drop": drop}, overwrite=True,
        )  # fmt: skip

    for drop in densities:
        run(lambda drop=drop: write(drop))  # type: ignore[misc]
        results.append(state(path))
    endings = together([lambda drop=drop: write(drop) for drop in densities], draw)  # type: ignore[misc]
    if any(ending.status != 0 for ending in endings):
        return str(endings)
    if state(path) not in results:
        return "is none of the results"
    return _clean(folder, ".green.fsw.*")


def _whole(zoo: Path) -> str:
    """Returns what is wrong with a zoo: damage, or a file that zoo.json does not name."""
    verified = run(lambda: verify(zoo))
    if verified.status != 0:
        return f"verify: {verified.message}"
    files = {name for name in listing(zoo) if name not in ("tasks", "index")}
    unnamed = files - set(state(zoo) or ())
    return f"holds {sorted(unnamed)}, which zoo.json does not name" if unnamed else ""


def _clean(folder: Path, pattern: str) -> str:
    left = [path.name for path in folder.glob(pattern)]
    return f"leaves {left}" if left else ""
