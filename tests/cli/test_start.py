"""Commands on small zoos answer soon: they do not load torch."""

import subprocess
import sys
from pathlib import Path

RECIPE = """
version: 1
steps:
  - {name: pack, command: pack, inputs: [red.fsw, blue.fsw], options: {output: other}}
  - {name: verify, command: verify, inputs: [other]}
"""
CODE = """
import sys
from flexswitch.cli.main import main

for words in {commands!r}:
    sys.argv = ["flexswitch", *words.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, words
    assert "torch" not in sys.modules, words
"""
COMMANDS = (
    "inspect zoo", "inspect red.fsw", "verify zoo", "pack red.fsw -o third", "run r.yaml", "run r.yaml --check",
)  # fmt: skip


def test_inspect_verify_pack_and_run_load_no_torch(zoo: Path) -> None:
    (zoo / "r.yaml").write_text(RECIPE)
    code = CODE.format(commands=COMMANDS)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
