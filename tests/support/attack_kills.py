"""Kills writing commands at a random step of the file system or moment, and looks at what is left."""

import collections
import signal
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from support.attack_scenes import SCENES, Scene, fresh, make_folder
from support.attacks import Ending, Files, Started, draws, listing, run, state

from flexswitch.merging.commands.verify import verify


class Expected(NamedTuple):
    """The states of an output before and after a command, all files after it, and how long it took."""

    old: Files | None
    new: Files | None
    after: Files
    ending: Ending


def attack(tries: int) -> dict[str, Any]:
    """Returns the tries, how many were killed before the command's end, and the failures, by command."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "made").mkdir()
        make_folder(root / "made")
        scenes = {scene.name: _expected(scene, root) for scene in SCENES[:tries]}
        for number, draw in draws(tries):
            scene = SCENES[number % len(SCENES)]
            found, problem = _kill(scene, scenes[scene.name], root, draw)
            counts[scene.name][found] += 1
            if problem:
                failures.append(f"{scene.name}, try {number}: {problem}")
    return {"attack": "kills", "tries": tries, "counts": counts, "failures": failures}


def _expected(scene: Scene, root: Path) -> Expected:
    """Runs a command undisturbed, with the state before it left in a folder of its own."""
    before, folder = root / scene.name, root / "work"
    fresh(root / "made", before)
    ending = run(lambda: scene.prepare(before))
    assert ending.status == 0, ending
    fresh(before, folder)
    old = state(folder / scene.output)
    ending = run(lambda: scene.command(folder))
    assert ending.status == 0, (scene.name, ending)
    return Expected(old, state(folder / scene.output), listing(folder), ending)


def _kill(scene: Scene, expected: Expected, root: Path, draw: Random) -> tuple[str, str]:
    """Returns the state that a killed command left, and what is wrong with it."""
    folder = fresh(root / scene.name, root / "work")
    if draw.random() < 0.25:
        return _interrupt(scene, expected, root, draw)
    if draw.random() < 0.75:
        started = Started(lambda: scene.command(folder), kill_at=draw.randint(1, expected.ending.steps))
    else:
        started = Started(lambda: scene.command(folder))
        time.sleep(draw.random() * expected.ending.seconds)
        started.kill()
    ending = started.wait()
    try:
        found = state(folder / scene.output)
    except Exception as error:
        return "broken", f"cannot be read: {error}"
    name = "new" if found == expected.new else "old" if found == expected.old else "other"
    counted = f"{'ended' if ending.status == 0 else 'killed'}, {name}"
    if name == "other" or ending.status not in (0, None):
        return counted, f"is neither the old nor the new one; {ending}"
    if found is not None and scene.output == "zoo":
        verified = run(lambda: verify(folder / scene.output))
        if verified.status != 0:
            return counted, f"verify: {verified.message}"
    again = scene.again if name == "new" else scene.command
    recovered = run(lambda: again(folder))
    if recovered.status != 0:
        return counted, f"the same command fails: {recovered.message}"
    left = listing(folder)
    different = [
        file for file in left.keys() | expected.after.keys() if left.get(file) != expected.after.get(file)
    ]
    return counted, f"differs after recovery: {sorted(different)}" if different else ""


def _interrupt(scene: Scene, expected: Expected, root: Path, draw: Random) -> tuple[str, str]:
    """Interrupts a command as Ctrl-C does; it cleans up itself."""
    folder, before = root / "work", listing(root / scene.name)
    step = draw.randint(1, expected.ending.steps)
    ending = Started(lambda: scene.command(folder), step, signal.SIGINT).wait()
    left = listing(folder)
    name = "new" if left == expected.after else "old" if left == before else "other"
    counted = f"{'ended' if ending.status == 0 else 'interrupted'}, {name}"
    if name != "other":
        return counted, ""
    changed = [file for file in left.keys() | before.keys() if left.get(file) != before.get(file)]
    return counted, f"an interrupt leaves {sorted(changed)}; {ending}"
