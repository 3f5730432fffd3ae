"""No output replaces what its command reads, not even with --overwrite."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.commands import Runner
from support.tiny_models import contents

import flexswitch


@pytest.fixture
def folder(zoo: Path) -> Path:
    """The folder of `zoo`, with a model that flexswitch wrote."""
    flexswitch.merge(["zoo"], "merged", base="base.safetensors", task="red")
    os.symlink("merged", "link")
    return zoo


CASES: dict[str, tuple[str, ...]] = {
    "the base of a merge": ("merge", "blue.safetensors", "--base", "merged", "--method", "average", "-o", "merged"),
    "the base through a link": ("merge", "blue.safetensors", "--base", "link", "--method", "average", "-o", "merged"),
    "the base by a link": ("merge", "blue.safetensors", "--base", "merged", "--method", "average", "-o", "link"),
    "a file of the base": ("merge", "blue.safetensors", "--base", "merged/model.safetensors", "--method", "average",
                           "-o", "merged"),
    "a fine-tuned model": ("merge", "merged", "--base", "base.safetensors", "--method", "average", "-o", "merged"),
    "a named one": ("merge", "red=merged", "--base", "base.safetensors", "--method", "average", "-o", "merged"),
    "a zoo in the output": ("merge", "merged/zoo", "--base", "base.safetensors", "--task", "red", "-o", "merged"),
    "the fine-tuned model of extract": ("extract", "base.safetensors", "t.tv.safetensors", "-o", "t.tv.safetensors"),
    "the base of export": ("export", "red.fsw", "--base", "merged", "--task", "red", "--to", "lora", "-o", "merged"),
    "the source of export": ("export", "merged", "--base", "base.safetensors", "--task", "merged", "--to", "lora",
                             "-o", "merged"),
    "the base of extract": ("extract", "t.tv.safetensors", "red.safetensors", "-o", "t.tv.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_input_is_never_replaced(folder: Path, flexswitch: Runner, case: str) -> None:
    shutil.copyfile("red.safetensors", "t.tv.safetensors")
    if case == "a zoo in the output":
        shutil.copytree("zoo", "merged/zoo")
    before: dict[str, Any] = contents(folder)
    outcome = flexswitch(*CASES[case], "--overwrite")
    assert outcome.status == 1
    assert outcome.error.startswith(f"{CASES[case][-1]}: the input ")
    assert outcome.error.endswith(" is there; give another output")
    assert contents(folder) == before


@pytest.mark.parametrize("path", ["~no-such-user/a", "loop", "loop/a"])
def test_a_path_that_cannot_be_followed_is_missing(folder: Path, flexswitch: Runner, path: str) -> None:
    os.symlink("loop", "loop")
    for words in (
        ("merge", path, "--base", path, "--method", "average", "-o", "out"),
        ("merge", "zoo", "--base", "base.safetensors", "--method", "average", "-o", f"{path}/out"),
        ("extract", path, path, "-o", "out.tv.safetensors"),
        ("compress", path, "--base", path, "-o", "out.fsw"),
        ("export", path, "--base", path, "--task", "a", "--to", "lora", "-o", "out"),
        ("run", path),
    ):
        outcome = flexswitch(*words)
        assert outcome.status == 1
        assert path in outcome.error


def test_what_flexswitch_wrote_is_replaced(folder: Path, flexswitch: Runner) -> None:
    merge = ("merge", "zoo", "--base", "base.safetensors", "--task", "blue", "-o", "merged")
    before = contents(folder / "merged")
    assert flexswitch(*merge, "--overwrite").status == 0
    assert contents(folder / "merged") != before
