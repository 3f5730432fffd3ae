"""Progress: a bar on a terminal, lines without one, nothing when quiet."""

import io
import itertools
import sys
from collections.abc import Callable

import pytest

from flexswitch.cli.console import Console, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, *firsts: int) -> str:
    """Returns what a terminal is sent while steps run from each of these to the 60th."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)  # here, since pytest sets its own after the fixtures
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    console = Console(False, False)
    for first in firsts:
        run(console, first, 60)
    return terminal.getvalue()


def ticking() -> Callable[[], float]:
    """Returns a clock that is a second later at every look."""
    return itertools.count(0.0).__next__


def run(console: Console, first: int, total: int) -> None:
    with (
        console.progress("compressing 2 tensors", 2) as on_tensor,
        console.steps("training a", total) as stepped,
    ):
        for done in range(first, total + 1):
            stepped(done, f"loss {done}")
        on_tensor("one")


def test_without_a_terminal_a_line_is_printed_every_50_steps(capsys: pytest.CaptureFixture[str]) -> None:
    run(Console(False, False, ticking()), 1, 130)
    assert capsys.readouterr().err.splitlines() == [
        "flexswitch: compressing 2 tensors",
        "flexswitch: step 50 of 130: loss 50, 1 min 20 s left",
        "flexswitch: step 100 of 130: loss 100, 30 s left",
        "flexswitch: step 130 of 130: loss 130",
    ]


def test_the_time_left_counts_only_the_steps_that_were_seen(capsys: pytest.CaptureFixture[str]) -> None:
    run(Console(False, False, ticking()), 91, 150)
    assert capsys.readouterr().err.splitlines()[1] == "flexswitch: step 100 of 150: loss 100, 50 s left"
    run(Console(False, False, ticking()), 100, 150)
    assert capsys.readouterr().err.splitlines()[1] == "flexswitch: step 100 of 150: loss 100"


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run(Console(True, False), 1, 100)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_both_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_terminal(monkeypatch, 41)
    assert "flexswitch: compressing 2 tensors\n" in shown
    assert "flexswitch: step" not in shown
    for part in ("training a", "60/60", "loss 60", "1/2"):
        assert part in shown


def test_a_bar_may_follow_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_terminal(monkeypatch, 41, 60).count("flexswitch: compressing 2 tensors\n") == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.2, "under 1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
    ],
)
def test_a_time_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
