"""Commands on small zoos load few modules and answer soon; an interrupt at once ends in one line."""

import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from support.commands import Runner

RECIPE = """
version: 1
steps:
  - {name: pack, command: pack, inputs: [red.fsw, blue.fsw], options: {output: other}}
  - {name: verify, command: verify, inputs: [other]}
"""
CODE = """
import sys
from flexswitch.cli.main import main

for words, heavy in {commands!r}.items():
    sys.argv = ["flexswitch", *words.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, words
    assert not set(heavy) & set(sys.modules), words
"""
WRITING = ("torch", "numba", "huggingface_hub", "multiprocessing")
READING = (*WRITING, "filelock", "rich.progress")
COMMANDS = {  # in this order, as they share a process
    "inspect zoo": READING,
    "inspect red.fsw": READING,
    "verify zoo": READING,
    "run r.yaml --check": READING,
    "pack red.fsw -o third": WRITING,
    "run again.yaml": WRITING,
    "compress red.safetensors --base base.safetensors -o again.fsw": ("numba",),
}


def test_commands_on_a_small_zoo_load_no_torch_and_no_numba(zoo: Path, flexswitch: Runner) -> None:
    (zoo / "r.yaml").write_text(RECIPE)
    (zoo / "again.yaml").write_text(RECIPE.replace("other", "again"))
    assert flexswitch("run", "r.yaml").status == 0
    code = CODE.format(commands=COMMANDS)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


INTERRUPTED = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{by})

sys.meta_path.insert(0, Interrupting())
sys.argv = ["flexswitch", "inspect", "zoo"]
from flexswitch.cli.main import main
main()
"""


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    "module", ["flexswitch.cli.app", "flexswitch.cli.pack", "flexswitch.codecs.format.zoo"]
)
def test_an_interrupt_while_the_command_starts_ends_in_one_line(zoo: Path, module: str, by: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED.format(module=module, by=by)]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    found = subprocess.run(command, capture_output=True, text=True, preexec_fn=heed)
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr == "flexswitch: interrupted; nothing half-written is left\n"


@pytest.mark.parametrize(
    "closed", [*(pytest.param(each, marks=pytest.mark.deep) for each in (">&-", "2>&-")), "<&- >&- 2>&-"]
)
def test_closed_streams_change_neither_the_status_nor_the_output(zoo: Path, closed: str) -> None:
    flexswitch = f"{shlex.quote(sys.executable)} -m flexswitch.cli"
    for words, status in (("inspect zoo", 0), ("inspect no", 1), ("pack red.fsw -o other --overwrite", 0)):
        found = subprocess.run(f"{flexswitch} {words} {closed}", shell=True, capture_output=True)
        assert found.returncode == status, found.stderr
        assert b"Traceback" not in found.stderr
    assert subprocess.run(f"{flexswitch} verify other", shell=True, capture_output=True).returncode == 0
