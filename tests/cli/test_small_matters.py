"""Pictures are PNGs, numbers agree with their nouns, and the shell completes the names of methods."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import Runner


@pytest.mark.parametrize("name", ["scores.jpg", "scores", "scores.png.svg"])
def test_a_picture_of_another_format_is_refused_at_once(zoo: Path, flexswitch: Runner, name: str) -> None:
    given = ("--base", "base.safetensors", "--data", "data")
    for option, command in (
        ("--plot", ("eval", "zoo", *given)),
        ("--plot", ("inspect", "red.fsw")),
        ("--report", ("index", "zoo")),
    ):
        outcome = flexswitch(*command, option, name)
        line = f"{option} {name}: expected a file name that ends in .png, the one format drawn"
        assert (outcome.status, outcome.error) == (2, line)


def test_one_of_a_thing_is_not_plural(models: Path, flexswitch: Runner) -> None:
    command = (
        "compress",
        "red.safetensors",
        "--base",
        "base.safetensors",
        "--include",
        "layer.bias",
        "-o",
        "a.fsw",
    )
    assert "compressing 1 tensor of red.safetensors\n" in flexswitch(*command, "--method", "t-switch").err
    outcome = flexswitch("pack", "a.fsw", "-o", "one")
    assert "packing 1 artifact into one\n" in outcome.err
    assert outcome.out.startswith("one: 1 task\n")
    assert "one: zoo of 1 task, base" in flexswitch("inspect", "one").out


@pytest.mark.parametrize("words", ["methods t-sw", "compress --method t-sw"])
def test_the_shell_completes_the_names_of_methods(words: str) -> None:
    environment = {
        **os.environ, "_FLEXSWITCH_COMPLETE": "complete_bash", "COMP_WORDS": f"flexswitch {words}",
        "COMP_CWORD": str(len(words.split())),
    }  # fmt: skip
    script = "import sys; sys.argv = ['flexswitch']; from flexswitch.cli.main import main; main()"
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["t-switch"]


def test_many_merged_tasks_are_counted_and_few_are_named(models: Path, flexswitch: Runner) -> None:
    for count, said in ((2, "t0, t1 average, "), (9, "9 tasks by average, ")):
        tasks = [f"t{number}=red.safetensors" for number in range(count)]
        options = ("--base", "base.safetensors", "--method", "average", "-o", f"merged-{count}")
        assert flexswitch("merge", *tasks, *options).out.startswith(f"merged-{count}: {said}")


@pytest.mark.parametrize(
    "command",
    ["inspect run.fsw", "pack run.fsw -o other", "merge run.fsw --base base.safetensors -o a --task red"],
)
def test_a_folder_in_place_of_a_file_is_called_one(models: Path, flexswitch: Runner, command: str) -> None:
    (models / "run.fsw").mkdir()
    outcome = flexswitch(*command.split())
    line = "run.fsw: is a folder; expected an artifact (.fsw) that `flexswitch compress` wrote"
    assert (outcome.status, outcome.error) == (1, line)


def test_a_file_in_place_of_a_folder_of_examples_is_called_one(zoo: Path, flexswitch: Runner) -> None:
    outcome = flexswitch("eval", "zoo", "--base", "base.safetensors", "--data", "red.fsw")
    assert (outcome.status, outcome.error.partition(";")[0]) == (1, "red.fsw: is a file")


@pytest.mark.parametrize("command", ["inspect zoo", "verify zoo", "pack red.fsw -o zoo --add"])
def test_a_name_that_stands_twice_in_zoo_json_is_refused(zoo: Path, flexswitch: Runner, command: str) -> None:
    file = zoo / "zoo" / "zoo.json"
    before = file.read_text().replace('"adapter"', '"adapter": "x", "adapter"', 1)
    file.write_text(before)
    outcome = flexswitch(*command.split())
    assert outcome.status == 3
    assert outcome.error.endswith("(the name 'adapter' stands twice in an object)")
    assert file.read_text() == before
