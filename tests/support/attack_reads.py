"""Reads zoos while another process changes them all the time: each read sees one whole state."""

import collections
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from support.attack_scenes import index_zoo, make_folder
from support.attacks import Started, draws, run
from support.tiny_models import Toy, make_artifact, text_toy
from torch import nn

from flexswitch.cli.main import main
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.zoo import Zoo, open_zoo, read_zoo
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.commands.verify import verify
from flexswitch.merging.switching.switched_model import SwitchedModel

IDS = torch.arange(40)


class Model(nn.Module):
    """The layers of the plain base."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(40, 16), nn.Linear(16, 24)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(self.embed(rows))
        return found


def attack(tries: int) -> dict[str, Any]:
    """Returns the tries, the failures, and how often the zoo was changed meanwhile."""
    kinds = [_decode, _merge, _merge_task, _refresh, _inspect, _verify, _eval]
    counts: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_folder(folder)
        toy = text_toy(folder / "toy", test_count=5)
        make_artifact(toy.base, toy.finetuned["birds"], folder / "birds.fsw", "t-switch", ["drop=0.9"])
        known = _known(folder)
        until, ended = os.pipe()
        changed = folder / "changes"
        writer = Started(lambda: _change(folder, toy, until, ended))
        os.close(until)
        for number, draw in draws(tries):
            read = kinds[number % len(kinds)]
            ending = run(lambda read=read, draw=draw: read(folder, toy, known, draw))  # type: ignore[misc]
            counts[read.__name__.strip("_")] += 1
            if ending.status != 0:
                failures.append(f"{read.__name__}, try {number}: {ending.message}")
        os.close(ended)
        ending = writer.wait()
        if ending.status != 0:
            failures.append(f"the writer: {ending.message}")
        changes = len(changed.read_bytes())
    return {"attack": "reads", "tries": tries, "counts": counts, "changes": changes, "failures": failures}


def _change(folder: Path, toy: Toy, until: int, ended: int) -> None:
    """Replaces the tasks of both zoos by other versions, and back, until the other process is done."""
    os.close(ended)
    os.set_blocking(until, False)
    birds = [folder / "birds.fsw", toy.zoo.parent / "birds.fsw"]
    versions = [["newer-red", "newer-blue"], ["red", "blue"]]
    number = 0
    while True:
        with open(folder / "changes", "ab") as log:
            log.write(b".")
        pack(
            [folder / f"{name}.fsw" for name in versions[number % 2]],
            folder / "zoo",
            add=True,
            overwrite=True,
        )
        pack([birds[number % 2]], toy.zoo, add=True, overwrite=True)
        if number % 3 == 0:
            index_zoo(folder, 3 + number % 2, overwrite=True)
        number += 1
        try:
            if os.read(until, 1) == b"":
                return
        except BlockingIOError:
            pass


def _digest(artifacts: dict[str, Artifact]) -> str:
    """Returns a hash of all that artifacts hold."""
    total = hashlib.sha256()
    for task, artifact in sorted(artifacts.items()):
        for name in artifact.header.tensors:
            sparse = artifact.sparse(name)
            total.update(f"{task}/{name}".encode() + sparse.mask.tobytes() + sparse.levels.tobytes())
    return total.hexdigest()


def _weights(path: Path) -> str:
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def _known(folder: Path) -> dict[str, set[str]]:
    """Returns for each kind of read the hashes of what it gives on the two versions."""
    known: dict[str, set[str]] = collections.defaultdict(set)
    for number, names in enumerate((["newer-red", "newer-blue"], ["red", "blue"])):
        zoo = folder / f"known{number}"
        pack([folder / f"{name}.fsw" for name in names], zoo)
        known["decode"].add(_digest(dict(open_zoo(zoo))))
        for kind, options in (("merge", {"method": "average"}), ("merge_task", {"task": "red"})):
            merge([zoo], folder / f"{kind}{number}", base=folder / "base.safetensors", **options)
            known[kind].add(_weights(folder / f"{kind}{number}"))
        known["refresh"].add(_answers(_model(folder, open_zoo(zoo))))
    return known


def _model(folder: Path, zoo: Zoo) -> SwitchedModel:
    module, base = Model(), folder / "base.safetensors"
    module.load_state_dict(load_file(base))
    return SwitchedModel(module, zoo, heads=False, base=base)


def _answers(model: SwitchedModel) -> str:
    """Returns a hash of the answers under two tasks; the router reads the index, and is not asked."""
    shares = torch.zeros(len(IDS), len(model.tasks))
    shares[::2, 0] = shares[1::2, 1] = 1
    return hashlib.sha256(model(IDS, weights=shares).numpy().tobytes()).hexdigest()


def _expect(known: dict[str, set[str]], kind: str, found: str) -> None:
    if found not in known[kind]:
        raise ValueError(f"{kind} gives neither the one nor the other version")


def _decode(folder: Path, toy: Toy, known: dict[str, set[str]], draw: Random) -> None:
    artifacts = read_zoo(folder / "zoo", dict)
    time.sleep(draw.random() / 4)
    _expect(known, "decode", _digest(artifacts))


def _merge(folder: Path, toy: Toy, known: dict[str, set[str]], draw: Random) -> None:
    merge(
        [folder / "zoo"], folder / "read", base=folder / "base.safetensors", method="average", overwrite=True
    )
    _expect(known, "merge", _weights(folder / "read"))


def _merge_task(folder: Path, toy: Toy, known: dict[str, set[str]], draw: Random) -> None:
    merge([folder / "zoo"], folder / "read", base=folder / "base.safetensors", task="red", overwrite=True)
    _expect(known, "merge_task", _weights(folder / "read"))


def _refresh(folder: Path, toy: Toy, known: dict[str, set[str]], draw: Random) -> None:
    model = read_zoo(folder / "zoo", lambda zoo: _model(folder, zoo))
    for _ in range(4):
        model.refresh()
        time.sleep(draw.random() / 8)
        _expect(known, "refresh", _answers(model))


def _command(*words: object) -> None:
    """Runs a command line, silently."""
    sys.argv = ["flexswitch", *map(str, words)]
    output = os.open(os.devnull, os.O_WRONLY)
    os.dup2(output, 1)
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise ValueError(f"{sys.argv} ends with {stop.code}") from stop


def _inspect(folder: Path, toy: Toy, known: dict[str, set[str]], draw: Random) -> None:
    _command("inspect", folder / "zoo", *draw.choice([(), ("--storage",), ("--json",)]))


def _verify(folder: Path, toy: Toy, known: dict[str, set[str]], draw: Random) -> None:
    verify(folder / "zoo", base=folder / "base.safetensors")


def _eval(folder: Path, toy: Toy, known: dict[str, set[str]], draw: Random) -> None:
    _command("eval", toy.zoo, "--base", toy.base, "--data", toy.data, "--limit", 2, "-q")
