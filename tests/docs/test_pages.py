"""The code of README and docs/ is right: all is parsed, and the pages that a small machine can follow are run."""

import importlib.util
import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import Runner, write_base
from support.doc_blocks import (
    COMMANDS,
    PAGES,
    blocks,
    command_lines,
    digits_scene,
    indented,
    parsed,
    text_scene,
)
from support.imports import ROOT

import flexswitch as package
from flexswitch.merging.methods.registry import METHODS
from flexswitch.merging.methods.settings import describe_settings

SETTINGS = {method.name: {setting.name for setting in describe_settings(method)} for method in METHODS}
# What pages call beside flexswitch; each is another program, or is checked for the files that it names.
OTHERS = ("pip", "python", "make", "ray", "sbatch", "cd")
# Pages whose blocks are run, one after the other, each page in a scene of its own.
RUN = {
    "README.md": text_scene,
    "docs/start.md": digits_scene,
    "docs/own-models.md": text_scene,
    "docs/learning.md": text_scene,
    "docs/routing.md": text_scene,
    "docs/serving.md": text_scene,
    "docs/mergekit.md": text_scene,
    "docs/extending.md": text_scene,
}
# What only larger models can do, and what does the same with the tiny ones.
TINY = {
    "--target-size 0.5%": "--target-size 60% --set steps=10",
    "--budget agreement=99%": "--budget agreement=30% --set steps=2 --per-task 40",
}


def check_command(words: list[str]) -> None:
    """Asserts that a command line names what exists: commands, options, methods, settings, files, targets."""
    program, *rest = words
    if program != "flexswitch":
        assert program in OTHERS, f"{program} is no program that the pages use"
        if program == "python" and rest[0].endswith(".py"):
            assert (ROOT / rest[0]).is_file(), rest[0]
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        if program == "make":
            assert {each for each in rest if "=" not in each} <= set(targets)
        for inner in (each for each in rest if each.startswith("flexswitch ")):
            check_command(next(command_lines(inner)))
        return
    options = parsed(rest)
    method = options.get("method") or options.get("share")
    if rest[0] == "compress" and method is None:
        method = "flexswitch" if options["exemplars"] or options["target_size"] else "t-switch"
    if method is not None:
        assert method in SETTINGS
        assert {each.partition("=")[0] for each in options["set_"] or ()} <= SETTINGS[method], words


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_types_names_what_exists(page: str) -> None:
    for block in blocks(page):
        assert block.language in ("sh", "python", "yaml", "json", "text"), f"{page}: ```{block.language}"
        if block.language == "sh":
            for words in command_lines(block.text):
                check_command(words)
        if block.language == "python":
            compile(block.text, page, "exec")
        if block.language == "yaml":
            steps = [
                step
                for job in (yaml.safe_load(block.text).get("jobs") or {}).values()
                for step in job["steps"]
            ]
            for words in command_lines("\n".join(step["run"] for step in steps if "run" in step)):
                if words[0] != "cat":
                    check_command(words)
    for line in indented(page):
        check_command(next(command_lines(re.sub(r"\[[^]]*\]|…", "", line))))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_can_be_parsed(command: str) -> None:
    examples = [
        " ".join(text.split()).removeprefix("Example: ")
        for text in inspect.cleandoc(COMMANDS[command].help).split("\n\n")
        if text.startswith("Example: ")
    ]
    assert examples
    for example in examples:
        for words in command_lines(example):
            check_command(words)


@pytest.mark.deep
@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs(
    page: str, tmp_path: Path, flexswitch: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    RUN[page](tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks(page):
        if block.file is not None:
            Path(block.file).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), namespace)
        elif block.language == "sh":
            for words in command_lines(tiny(block.text)):
                if words[0] == "flexswitch":
                    outcome = flexswitch(*words[1:])
                    assert outcome.status == 0, f"{' '.join(words)}: {outcome.err}"
    assert len(os.listdir(tmp_path)) > 1


def tiny(text: str) -> str:
    """Returns a block as the tiny models of the scene can follow it."""
    for long, short in TINY.items():
        text = text.replace(long, short)
    return text


def test_the_recipe_of_the_page_about_recipes_runs(
    tmp_path: Path, flexswitch: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (recipe,) = (block for block in blocks("docs/zoo.md") if block.language == "yaml")
    Path("zoo.yaml").write_text(recipe.text)
    Path("models.yaml").write_text("version: 1\nsteps: [{name: verify, command: verify, inputs: [zoo]}]\n")
    for seed, model in enumerate(("base", "sst2", "cola")):
        Path("models", model).mkdir(parents=True)
        write_base(Path("models", model, "model.safetensors"), seed)
    Path("zoo.csv").write_text("task,model\nsst2,models/sst2\ncola,models/cola\n")
    outcome = flexswitch("run", "zoo.yaml", "--dry-run")
    assert outcome.status == 0, outcome.err
    assert "compress sst2" in outcome.out + outcome.err


def test_pages_use_public_names_only_where_they_do_not_say_otherwise() -> None:
    for page in (each for each in PAGES if each != "docs/extending.md"):
        code = "\n".join(block.text for block in blocks(page) if block.language == "python")
        assert not re.search(r"(from|import) flexswitch\.", code), page
        assert set(re.findall(r"\bflexswitch\.(\w+)", code)) <= set(package.__all__), page


def test_the_picture_of_sizes_is_drawn_from_the_tables_of_the_page() -> None:
    curve = loaded(ROOT / "benchmarks" / "flex_switch" / "curve.py")
    individual, methods = curve.read_curve((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"))
    assert 0 < individual < 100
    assert {"flexswitch", "t-switch", "dare", "compeft"} < set(methods)
    assert "FlexSwitch" in (ROOT / "docs" / "flexswitch.svg").read_text(encoding="utf-8")


def loaded(path: Path) -> Any:
    """Returns a module of the repository that is in no package."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_every_public_name_has_a_docstring_and_so_have_the_members_of_classes() -> None:
    reference = loaded(ROOT / "docs" / "site_reference.py")
    assert list(reference.undocumented()) == []
    assert "## merge" in reference.commands_page()
    assert "| `drop` |" in reference.settings_page()
