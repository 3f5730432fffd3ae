"""The page of the recorded demo is of the demo as it is: the commands of its recipe, and those that the script types."""

import re
import sys
from pathlib import Path

import pytest
from support.doc_blocks import ROOT, blocks, parsed

from flexswitch.recipes.prepared import read_graph

PAGE = "docs/recording.md"
RECIPE_PICTURE = ROOT / "docs" / "recipe.svg"


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.delitem(sys.modules, "pictures", raising=False)
    import recording

    return recording


def test_the_page_shows_what_the_script_types(recording) -> None:
    typed = [block.text.splitlines()[0] for block in blocks(PAGE)]
    assert typed == [f"$ flexswitch {line}" for _, line in recording.PARTS]
    assert all(why in (ROOT / PAGE).read_text(encoding="utf-8") for why, _ in recording.PARTS)
    for line in typed:
        parsed(line.split()[2:])


def test_the_page_shows_every_step_of_the_recipe() -> None:
    run = blocks(PAGE)[0].text
    shown = re.findall(r"^flexswitch: \$ (.*)$", run, re.MULTILINE)
    steps = read_graph(ROOT / "recipes" / "digits.yaml").plan.steps
    assert sorted(shown) == sorted(step.line for step in steps)
    assert f"{len(steps)} steps done, 0 had been done before" in run


def test_the_picture_of_the_routed_batch_is_small_and_shown() -> None:
    assert "](routed.svg)" in (ROOT / PAGE).read_text(encoding="utf-8")
    assert (ROOT / "docs" / "routed.svg").stat().st_size < 40_000


def test_the_picture_of_the_recipe_is_of_the_recipe_as_it_is(recording: object, tmp_path: Path) -> None:
    import pictures

    pictures.draw_recipe(ROOT / "recipes" / "digits.yaml", tmp_path / "recipe.svg")
    drawn, shown = (path.read_text(encoding="utf-8") for path in (tmp_path / "recipe.svg", RECIPE_PICTURE))
    for part in (r">([^<>]+)</text>", r'<g id="patch_\d+">'):  # boxes' labels; boxes and arrows
        assert re.findall(part, drawn) == re.findall(part, shown), "draw it anew: python docs/pictures.py"
