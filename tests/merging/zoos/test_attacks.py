"""Whatever is killed, raced or read meanwhile, a zoo is whole and nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]


def attacked(*kinds: object) -> None:
    """Runs attacks in a process of their own, which has one thread and may fork."""
    command = [sys.executable, "-m", "support.attacks", *map(str, kinds)]
    found = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    for line in found.stdout.splitlines():
        assert json.loads(line)["failures"] == []


def test_a_few_killed_commands_and_races() -> None:
    attacked("kills", 5, "races", 3)


@pytest.mark.deep
@pytest.mark.parametrize(("kind", "tries"), [("kills", 120), ("races", 40), ("reads", 28)])
def test_many_killed_commands_races_and_readers(kind: str, tries: int) -> None:
    attacked(kind, tries)
