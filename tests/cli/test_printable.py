"""No command prints control characters, whatever the files that it reads are called or contain."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.artifact_files import damage
from support.commands import Runner
from test_console import Terminal

from flexswitch.cli.console import Console, table
from flexswitch.cli.printable import printable
from flexswitch.codecs.format.container import open_artifact
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.extract import extract
from flexswitch.merging.commands.pack import pack

# Colours, a cleared line, a forged line, bidirectional controls, markup of rich, an emoji code of rich, C1.
HOSTILE = "w\x1b[31m\x1b]0;t\x07\r\nflexswitch: error\u202e\u2066[/x][bold]:smile:\x9b2J\u2028\u200b"
SHOWN = r"w\x1b[31m\x1b]0;t\x07\r\nflexswitch: error\u202e\u2066[/x][bold]:smile:\x9b2J\u2028\u200b"
TENSOR = HOSTILE.replace("/", "")  # a name with a slash is refused
COMPRESS = ("--base", "base.safetensors", "--method", "t-switch")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with a hostile tensor name, and of all that is made of them."""
    folder = tmp_path_factory.mktemp("hostile")
    base = {TENSOR: np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)}
    save_file(base, folder / "base.safetensors")
    save_file({TENSOR: base[TENSOR] + 1, "head" + TENSOR: base[TENSOR]}, folder / "red.safetensors")
    pair = [folder / "base.safetensors", folder / "red.safetensors"]
    extract(*pair, folder / "red.tv.safetensors")
    compress(pair[1], folder / "red.fsw", base=pair[0])
    pack([folder / "red.fsw"], folder / "zoo")
    steps = [{"name": HOSTILE, "command": "inspect", "inputs": [path]} for path in ("red.fsw", HOSTILE)]
    (folder / "recipe.yaml").write_text(json.dumps({"version": 1, "steps": steps}))
    return folder


@pytest.fixture
def hostile(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, made the current one."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "hostile"))
    return Path.cwd()


def check_printable(text: str) -> None:
    assert [line for line in text.split("\n") if not line.isprintable()] == []


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("inspect", "base.safetensors"), 0),
        (("inspect", "red.tv.safetensors"), 0),
        (("inspect", "red.fsw"), 0),
        (("inspect", "red.fsw", "--storage"), 0),
        (("inspect", "zoo"), 0),
        (("merge", "zoo", "--base", "base.safetensors", "-o", "out", "--task", "red"), 0),
        (("run", "recipe.yaml"), 1),
        (("extract", "base.safetensors", HOSTILE, "-o", "a.tv.safetensors"), 1),
        (("compress", HOSTILE, *COMPRESS, "-o", "a.fsw"), 1),
        (("pack", HOSTILE, "-o", "zoo2"), 1),
        (("index", "zoo", "--base", HOSTILE, "--exemplars", HOSTILE), 1),
        (("route", HOSTILE, "--base", HOSTILE, "--input", HOSTILE), 1),
        (("eval", HOSTILE, "--base", HOSTILE, "--data", HOSTILE), 1),
        (("merge", "zoo", "--base", "base.safetensors", "-o", "out", "--task", HOSTILE), 1),
        (("verify", HOSTILE), 1),
        (("verify", "--base", HOSTILE, "zoo"), 1),
        (("inspect", HOSTILE), 1),
        (("inspect", HOSTILE, "--debug"), 1),
        (("methods", HOSTILE), 2),
        (("run", HOSTILE), 1),
        (("pack", f"--{HOSTILE}"), 2),
        ((HOSTILE,), 2),
    ],
)  # fmt: skip
def test_no_command_prints_control_characters(
    hostile: Path, flexswitch: Runner, command: tuple[str, ...], status: int
) -> None:
    outcome = flexswitch(*command)
    assert outcome.status == status
    check_printable(outcome.out)
    check_printable(outcome.err)
    if status == 0 and command[0] == "inspect" and command[1] != "zoo":
        assert SHOWN.replace("/", "") in outcome.out


def test_the_texts_of_a_hostile_artifact_are_printed_escaped(hostile: Path, flexswitch: Runner) -> None:
    method = {"name": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    damage(hostile / "red.fsw", lambda document: document.update(method=method))
    damage(hostile / "red.fsw", lambda document: document.update(model={"adapter": HOSTILE}))
    for command in (("inspect", "red.fsw"), ("verify", "red.fsw"), ("pack", "red.fsw", "-o", "other")):
        outcome = flexswitch(*command)
        assert outcome.status == 0
        check_printable(outcome.out + outcome.err)


def test_a_base_of_no_hub_id_is_refused_without_control_characters(hostile: Path, flexswitch: Runner) -> None:
    damage(hostile / "red.fsw", lambda document: document["base"].update(id=HOSTILE))
    for command in (("inspect", "red.fsw"), ("verify", "red.fsw"), ("pack", "red.fsw", "-o", "other")):
        outcome = flexswitch(*command)
        assert outcome.status == 3
        check_printable(outcome.out + outcome.err)


def test_json_is_exact_and_ascii(hostile: Path, flexswitch: Runner) -> None:
    found = flexswitch("inspect", "red.fsw", "--json").out
    assert found.isascii()
    check_printable(found)
    assert list(json.loads(found)["tensors"]) == [TENSOR]
    assert open_artifact(hostile / "red.fsw").header.tensors.keys() == {TENSOR}


def test_a_path_that_is_not_utf_8_is_printed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\x1b.safetensors")
    save_file({"w": np.zeros((2, 2), np.float32)}, tmp_path / "plain.safetensors")
    (tmp_path / "plain.safetensors").rename(tmp_path / name)
    command = [sys.executable, "-m", "flexswitch.cli", "inspect", name]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert rb"caf\udce9\x1b.safetensors: checkpoint of 1 tensors" in run.stdout


def test_the_bars_of_a_terminal_show_names_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, console = Terminal(), Console(False, False)
    monkeypatch.setattr(sys, "stderr", terminal)  # here, since pytest sets its own after the fixtures
    monkeypatch.setenv("COLUMNS", "800")
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("packing " + HOSTILE, 2) as on_item, console.steps(HOSTILE, 2) as on_step:
        on_item(HOSTILE)
        on_step(1, HOSTILE)
        on_step(2, HOSTILE)
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r", "", terminal.getvalue())
    check_printable(shown)
    assert SHOWN in shown


def test_tables_and_lines_hold_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(HOSTILE, HOSTILE)
    rows.add_row(HOSTILE)
    Console(False, False).result({}, rows, HOSTILE)
    shown = capsys.readouterr().out
    check_printable(shown)
    assert shown.count(SHOWN) == 4


def test_messages_of_libraries_are_printable(flexswitch: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    flexswitch("methods")
    logging.getLogger("another").warning("loading %s", HOSTILE)
    check_printable(capsys.readouterr().err)
    check_printable(warnings.formatwarning(HOSTILE, UserWarning, HOSTILE, 1))


def test_a_very_long_message_has_its_beginning_and_its_end(flexswitch: Runner) -> None:
    error = flexswitch("inspect", "a" * 50_000).error
    assert len(error) < 10_100
    assert error.startswith("aaa")
    assert error.endswith("File name too long")


@pytest.mark.parametrize("text", ["plain", "é 中文 😀 ×", ""])
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
