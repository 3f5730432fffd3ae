"""A task's name can name files on every system, which is checked when it is first given."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from support.commands import Runner

import flexswitch
from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.fields import check_task_name

FORM = "expected letters, digits, '.', '_' and '-', a letter or digit first"
RESERVED = "is reserved on Windows, where no file can be named after it"
WRONG = {
    "": FORM, ".": FORM, "..": FORM, ".hidden": FORM, "-x": FORM, "_x": FORM, "a/b": FORM, "a\\b": FORM, "a b": FORM,
    "a:b": FORM, "a\n": FORM, "a\0": FORM, "é": FORM, "e\u0301": FORM, "a\u202e": FORM, "\ud800": FORM, "a*": FORM,
    "con": RESERVED, "CON": RESERVED, "nul.txt": RESERVED, "Com1": RESERVED, "lpt9.a.b": RESERVED,
    "a" * 129: "has 129 letters, expected 128 at most; files are named after it",
}  # fmt: skip
COMPRESS = ("compress", "red.safetensors", "--base", "base.safetensors")


@pytest.mark.parametrize("name", WRONG, ids=repr)
def test_a_name_that_names_no_file_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=WRONG[name].replace(".", r"\.")):
        check_task_name(name)


@pytest.mark.parametrize("name", ["a", "0", "sst2", "a.b-c_d", "console", "com10", "acon", "a" * 128, "a."])
def test_any_other_name_is_taken(name: str) -> None:
    assert check_task_name(name) == name


@pytest.mark.parametrize("name", ["con", "-x", "a/b", "a" * 129])
def test_every_way_to_name_a_task_is_checked_before_anything_is_written(
    models: Path, flexswitch: Runner, name: str
) -> None:
    line = f"task name '{name}': {WRONG[name]}; give one with --name"
    extract = ("extract", "base.safetensors", "red.safetensors", "-o", "a.tv.safetensors")
    for command in ((*COMPRESS, "-o", "a.fsw"), extract):
        outcome = flexswitch(*command, "--name", name)
        assert (outcome.status, outcome.error) == (2, line)
    if "/" not in name:
        outcome = flexswitch(*COMPRESS, "-o", f"./{name}.fsw")
        assert (outcome.status, outcome.error) == (2, line)
    with pytest.raises(UsageError) as caught:
        library().compress(
            models / "red.safetensors", models / "a.fsw", base=models / "base.safetensors", name=name
        )
    assert str(caught.value) == line
    step = {"name": "s", "command": "compress", "inputs": ["red.safetensors"]}
    step["options"] = {"base": "base.safetensors", "output": "a.fsw", "name": name}  # type: ignore[assignment]
    (models / "r.yaml").write_text(json.dumps({"version": 1, "steps": [step]}))
    outcome = flexswitch("run", "r.yaml")
    assert outcome.status in (1, 2)
    assert WRONG[name] in outcome.err
    assert not list(models.glob("*.fsw"))


def library() -> ModuleType:
    """Returns the library, whose name the fixture of the command line hides."""
    return flexswitch


def test_the_longest_name_goes_through_all_commands(models: Path, flexswitch: Runner) -> None:
    name = "a" * 128
    assert flexswitch(*COMPRESS, "-o", "a.fsw", "--name", name, "--method", "t-switch").status == 0
    assert flexswitch("pack", "a.fsw", "-o", "zoo").status == 0
    assert flexswitch("merge", "zoo", "--base", "base.safetensors", "-o", "out", "--task", name).status == 0
