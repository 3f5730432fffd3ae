"""What commands print is read on any screen: nothing is cut off, words stay whole, and errors stand out."""

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import Runner
from support.doc_blocks import COMMANDS
from test_console import Terminal

from flexswitch.cli.console import Console
from flexswitch.cli.eval import score_tables
from flexswitch.cli.help import GROUPS, group_of
from flexswitch.cli.screen import ACCENT, columns_of, fitted, styled, tell, wrapped
from flexswitch.cli.table import Column, Table

SENTENCE = "red.fsw: expected an artifact of flexswitch, found a file of 12 bytes; compress it again"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_every_option_in_one_of_the_groups(command: str, flexswitch: Runner) -> None:
    shown = flexswitch(command, "--help").out.splitlines()
    for parameter in COMMANDS[command].params:
        title = shown.index(f"{group_of(parameter)}:")
        lines = shown[title + 1 : shown.index("", title) if "" in shown[title:] else None]
        name = parameter.opts[0]
        if parameter.param_type_name == "argument":
            name = parameter.metavar or name.upper()
        assert any(name in line[:26].replace(",", " ").split() for line in lines), name


def test_every_group_lists_options_that_exist() -> None:
    names = [each.opts[0].removeprefix("--") for command in COMMANDS.values() for each in command.params]
    listed = " ".join(GROUPS.values()).split()
    assert sorted(listed) == sorted({*names, "help"} - {each for each in names if each not in listed})
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_fits_the_screen_and_breaks_no_word(
    command: str, columns: int, flexswitch: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = flexswitch(*command.split(), "--help").out
    assert [line for line in shown.splitlines() if len(line) > columns and "Example: " not in line] == []
    for parameter in COMMANDS[command].params if command else ():
        assert " ".join(parameter.help.split()) in " ".join(shown.split())


def texts(longest: int) -> st.SearchStrategy[str]:
    return st.text("ab.c-_ é", max_size=longest).map(lambda text: " ".join(text.split()))


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Draws a table of a name, other texts and figures."""
    lefts = [True, *draw(st.lists(st.booleans(), max_size=6))]
    columns = [Column(draw(texts(20)) or "x", left, left and draw(st.booleans())) for left in lefts]
    made = Table("", columns)
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            made.add_section()
        made.add_row(*(draw(texts(60) if left else st.integers(0, 10**9).map(str)) for left in lefts))
    return made


def spans(rule: str) -> list[tuple[int, int]]:
    """Returns where each column of a table begins and ends."""
    found, start = [], 0
    for dashes in rule.split("  "):
        found.append((start, start + len(dashes)))
        start += len(dashes) + 2
    return found


@given(tables(), st.integers(60, 160), st.booleans())
def test_a_table_is_aligned_and_whole_at_any_width(made: Table, width: int, folds: bool) -> None:
    lines = list(made.lines(width, folds))
    found: list[list[str]] = []  # of each column that is shown, all its text
    for number, line in enumerate(lines):
        if line.kind == "rule" and lines[number - 1].kind == "header":
            places = spans(line.text)
            start = len(found)
            found += [[] for _ in places]
        elif line.kind == "row" and line.text:
            text, end = line.text.ljust(places[-1][1]), 0
            for column, (begin, stop) in enumerate(places, start):
                assert not text[end:begin].strip()
                found[column].append(text[begin:stop])
                end = stop
            assert not text[end:].strip()
        assert len(line.text) <= width or not folds
    wanted = [
        "".join("".join(row[column].split()) for row in made.rows) for column in range(len(made.columns))
    ]
    shown = ["".join("".join(part.split()) for part in column) for column in found]
    assert sorted(set(shown)) == sorted(set(wanted))


def test_a_table_wider_than_the_screen_repeats_its_first_column() -> None:
    made = Table(
        "sizes", [Column("tensor", True, False), *(Column(f"codec {each}", False, False) for each in "abc")]
    )
    made.add_row("layer.weight", "1,000,000", "2,000,000", "3,000,000")
    made.add_section()
    made.add_row("total", "1,000,000", "2,000,000", "3,000,000")
    assert [line.text for line in made.lines(37, True)] == [
        "sizes",
        "tensor          codec a    codec b",
        "────────────  ─────────  ─────────",
        "layer.weight  1,000,000  2,000,000",
        "────────────  ─────────  ─────────",
        "total         1,000,000  2,000,000",
        "",
        "tensor          codec c",
        "────────────  ─────────",
        "layer.weight  3,000,000",
        "────────────  ─────────",
        "total         3,000,000",
    ]


def test_two_columns_that_no_group_can_fit_are_shown_whole() -> None:
    made = Table("", [Column("task", True, False), Column("model", True, False)])
    made.add_row("t" * 50, "m" * 50)
    shown = [line.text for line in made.lines(40, folds=False)]
    assert shown[-1].split() == ["t" * 50, "m" * 50]


def test_no_line_of_a_log_is_longer_than_160(zoo: Path, flexswitch: Runner) -> None:
    flexswitch("pack", "-o", "many", *(f"t{number:03}=red.fsw" for number in range(200)))
    for command in (
        ("inspect", "many"),
        ("inspect", "red.fsw", "--storage"),
        ("methods",),
        ("methods", "flexswitch"),
    ):
        lines = flexswitch(*command).out.splitlines()
        assert max(map(len, lines)) <= 160
    assert (
        len([line for line in flexswitch("inspect", "many").out.splitlines() if line.startswith("t")]) == 202
    )


def test_the_scores_of_many_tasks_stand_in_rows() -> None:
    tasks = [f"t{number}" for number in range(30)]
    row = {"scores": dict.fromkeys(tasks, 91.25), "average": 91.25, "share_of_individual": 0.5, "bytes_per_task": 10,
           "routing_accuracy": None}  # fmt: skip
    document = {"metrics": dict.fromkeys(tasks, "accuracy"), "methods": {"base": row, "ties": row}}
    each, summary = score_tables(document)
    assert [column.header for column in each.columns] == ["task", "base", "ties"]
    assert each.rows[29] == ["t29", "91.2", "91.2"]
    assert [row[0] for row in summary.rows] == ["base", "ties"]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "xterm")])
def test_styles_are_for_terminals_that_have_them(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(name, value)
    assert styled("-o", ACCENT, StringIO()) == "-o"
    assert styled("-o", ACCENT, Terminal()) == ("\x1b[36m-o\x1b[0m" if value == "xterm" else "-o")


def test_an_error_is_one_line_of_a_log_and_ends_between_words_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    for stream, lines in (
        (StringIO(), [f"flexswitch: error: {SENTENCE}"]),
        (Terminal(), [
            "flexswitch: \x1b[1;31merror:\x1b[0m red.fsw: expected an artifact of flexswitch, found a file of",
            "  12 bytes; compress it again",
        ]),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "stderr", stream)
        tell(f"error: {SENTENCE}")
        assert stream.getvalue().splitlines() == lines


def test_a_command_line_stays_whole_to_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    line = "$ flexswitch compress sst2 --base models/base --output sst2.fsw"
    assert fitted(f"flexswitch: {line}", Terminal()) == [f"flexswitch: {line}"]
    assert len(fitted(line[2:], Terminal())) == 2


@given(texts(200), st.integers(10, 60))
def test_wrapped_lines_hold_the_words_of_the_text(text: str, width: int) -> None:
    lines = wrapped(text, width, "  ")
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)


def test_the_columns_are_those_asked_for_or_those_of_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert (columns_of(StringIO()), columns_of(Terminal())) == (160, 80)
    for given_columns, columns in (("100", 100), ("3", 40), ("0", 160), ("x", 160)):
        monkeypatch.setenv("COLUMNS", given_columns)
        assert columns_of(StringIO()) == columns


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("pack", "missing option '--output' / '-o'; see flexswitch pack --help"),
        ("pack --foo -o x", "no such option: --foo (Possible options: --effort); see flexswitch pack --help"),
        ("pack -o x --effort most", "invalid value for '--effort': 'most' is not one of 'fast', 'small'; see flexswitch pack --help"),
        ("inspect a b", "got unexpected extra argument(s) (b); see flexswitch inspect --help"),
        ("packs", "no such command 'packs'. Did you mean 'pack'? See flexswitch --help"),
    ],
)  # fmt: skip
def test_a_wrong_use_is_told_in_one_line(command: str, line: str, flexswitch: Runner) -> None:
    outcome = flexswitch(*command.split())
    assert (outcome.status, outcome.out, outcome.err) == (2, "", f"flexswitch: error: {line}\n")


def test_without_a_command_the_help_is_shown(flexswitch: Runner) -> None:
    outcome = flexswitch()
    assert (outcome.status, outcome.err) == (2, "")
    assert outcome.out == flexswitch("--help").out


def test_a_long_training_takes_at_most_20_lines_of_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(False, False).steps("training", 10_000) as stepped:
        for done in range(1, 10_001):
            stepped(done, "loss 1")
    assert len(capsys.readouterr().err.splitlines()) == 20


def test_a_stream_that_lacks_a_character_ends_no_command(zoo: Path) -> None:
    command = [sys.executable, "-m", "flexswitch.cli", "inspect", "red.fsw"]
    run = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert r"40\xd716" in run.stdout


def test_json_has_no_styles_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    Console(False, True).result({"name": "a" * 300})
    assert json.loads(terminal.getvalue()) == {"name": "a" * 300}
