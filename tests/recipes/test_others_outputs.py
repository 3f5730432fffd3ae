"""What no step of a recipe wrote is neither replaced nor written through."""

import shutil
from pathlib import Path

import pytest
from support.small_recipe import ALL, MORE, RECIPE, contents

from flexswitch.recipes.lock import step_file
from flexswitch.recipes.plan import make_plan


def test_an_output_that_no_step_wrote_is_not_replaced(flexswitch, recipe, models):
    (models / "red.fsw").write_bytes(b"mine")
    outcome = flexswitch("run", "recipe.yaml")
    assert outcome.status == 1
    assert "red.fsw: exists already, and no step of this recipe wrote it" in outcome.error
    assert (models / "red.fsw").read_bytes() == b"mine"
    assert not (models / "blue.fsw").exists()


@pytest.mark.parametrize(
    ("text", "other", "mine"),
    [
        ('"{task}.fsw", set', '"more/{task}.fsw", set', "more/red.fsw"),  # a step that wrote elsewhere before
        ("{output: zoo}", "{output: mine}", "mine"),
    ],
)
def test_a_step_with_a_record_replaces_nothing_at_another_output(run, flexswitch, models, text, other, mine):
    run()
    (models / "more").mkdir()
    shutil.copytree(models / "zoo", models / "mine")
    (models / "more/red.fsw").write_bytes(b"mine")
    before = contents(models / "more"), contents(models / "mine"), (models / "mine/zoo.json").read_bytes()
    recipe = models / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(text, other).replace('["*.fsw"]', '["red.fsw"]'))
    outcome = flexswitch("run", "recipe.yaml")
    assert outcome.status == 1
    assert f"{mine}: exists already, and no step of this recipe wrote it" in outcome.error
    assert before == (
        contents(models / "more"), contents(models / "mine"), (models / "mine/zoo.json").read_bytes(),
    )  # fmt: skip


def test_a_zoo_that_no_step_wrote_is_not_replaced_where_another_step_changes_it(flexswitch, recipe, models):
    recipe.write_text(RECIPE + MORE)
    (models / "zoo").mkdir()
    (models / "zoo/file").write_text("mine")
    outcome = flexswitch("run", "recipe.yaml")
    assert "zoo: exists already, and no step of this recipe wrote it" in outcome.error


def test_nothing_is_written_through_links_beside_a_recipe(flexswitch, recipe, run, models):
    mine = models / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    (models / "recipe.logs").symlink_to(mine)
    assert flexswitch("run", "recipe.yaml").error.startswith("recipe.logs: is a link or no folder, ")
    (models / "recipe.logs").unlink()
    (models / "recipe.lock").symlink_to(mine / "none")
    assert flexswitch("run", "recipe.yaml").error.startswith("recipe.lock: is no file, ")
    (models / "recipe.lock").unlink()
    files = [
        models / "recipe.logs" / f"{number:04}-{name.replace(' ', '-')}.log"
        for number, name in enumerate(ALL, 1)
    ]
    for step in make_plan(Path("recipe.yaml")).steps:
        place = step_file(step, Path("recipe.lock"))
        files += [place, place.with_name(f".{place.name}.partial")]
    for file in files:
        file.symlink_to(mine / "file")
    assert run() == ALL
    assert [(file.name, file.read_text()) for file in mine.iterdir()] == [("file", "mine")]
