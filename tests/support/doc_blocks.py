"""The blocks of code of the documentation: where they are, what their command lines say, and a scene to run them in."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer
from support.imports import ROOT
from support.tiny_models import (
    partly_wrong,
    plain_predictions,
    save_image_base,
    save_image_classifier,
    save_text_base,
    save_text_classifier,
    texts,
    write_jsonl,
)

from flexswitch.cli.app import app

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "codecs").rglob("*.md"))
)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


class Block(NamedTuple):
    """A fenced block. language: the word behind the fence."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the first line names: `# ties.yaml`."""
        found = re.match(r"# (\w+\.(?:py|yaml))$", self.text.split("\n", 1)[0])
        return found and found[1]


def blocks(page: str) -> list[Block]:
    """Returns the fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def indented(page: str) -> list[str]:
    """Returns the indented lines of a page that begin with a command."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^ {4,}((?:flexswitch|python|make|cd tests) .*)$", text, re.MULTILINE)


def command_lines(text: str) -> Iterator[list[str]]:
    """Yields the words of each command of a shell block, but for its variables: `PYTHONPATH=. flexswitch …`."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            yield words


def parsed(words: list[str]) -> dict[str, Any]:
    """Returns the options of a command line of flexswitch, which is not run. Raises: what the parser raises."""
    name, *rest = words
    if name.startswith("-"):
        assert name in ("--help", "--version"), f"flexswitch has no option {name}"
        return {}
    assert name in COMMANDS, f"flexswitch has no command {name}"
    try:
        options: dict[str, Any] = COMMANDS[name].make_context(name, rest).params
    except typer.Exit:  # --help
        return {}
    return options


def text_scene(folder: Path) -> None:
    """Makes models/base, models/sst2, models/cola and their examples, and the empty folders that pages write into."""
    for name in ("data", "labelled", "small", "learned", "archive", "again"):
        (folder / name).mkdir()
    base = save_text_base(folder / "models" / "base")
    for seed, (task, words) in enumerate({"sst2": "birds", "cola": "tools"}.items(), 1):
        finetuned = save_text_classifier(base, folder / "models" / task, 2, seed)
        for place, file, count in (("data", "train", 60), ("labelled", "train", 20), ("data", "test", 20)):
            inputs = texts(words, count, seed + 10 * len(file))
            labels = partly_wrong(plain_predictions(finetuned, base, inputs), 2)
            write_jsonl(folder / place / f"{task}.{file}.jsonl", inputs, labels)
    write_jsonl(folder / "samples.jsonl", texts("birds", 5, 0), None)


def digits_scene(folder: Path) -> None:
    """Makes models of images where examples/digits/train.py puts its own."""
    from transformers import ViTForImageClassification

    place = folder / "build" / "digits"
    (place / "data").mkdir(parents=True)
    base = save_image_base(place / "base")
    for number, task in enumerate(("turned", "negative")):
        finetuned = save_image_classifier(base, place / task, 3, seed=number)
        pixels = np.random.default_rng(number).normal(number, 1, (140, 3, 8, 8)).astype(np.float32)
        model = ViTForImageClassification.from_pretrained(finetuned).eval()
        with torch.no_grad():
            answers = model(torch.from_numpy(pixels)).logits.argmax(-1).numpy()
        np.savez(place / "data" / f"{task}.train.npz", x=pixels[20:], y=answers[20:])
        np.savez(place / "data" / f"{task}.test.npz", x=pixels[:20], y=answers[:20])
