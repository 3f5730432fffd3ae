"""Recipes to begin with, and the schema by which an editor completes them."""

import json
import shutil
from pathlib import Path

import pytest
from test_recipe import FOLDER, RECIPES

from flexswitch.recipes.commands import check_arguments, get_command
from flexswitch.recipes.plan import make_plan
from flexswitch.recipes.starting import STARTERS


def test_every_recipe_that_ships_is_run_by_a_test_or_planned_by_one():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*STARTERS, *(path.stem for path in RECIPES)}


@pytest.fixture
def table(models: Path) -> Path:
    """The folder of `models` with the base and the fine-tunes where the recipes expect them."""
    (models / "models" / "base").mkdir(parents=True)
    shutil.copy(models / "base.safetensors", models / "models" / "base" / "model.safetensors")
    for name in ("zoo.csv", "models.csv"):
        (models / name).write_text("task,model\nred,red.safetensors\nblue,blue.safetensors\n")
    return models


def test_the_first_recipe_makes_a_verified_zoo_of_a_table(table, flexswitch):
    assert flexswitch("run", "--init", "zoo").status == 0
    text = (table / "zoo.yaml").read_text().replace("at_most: 2", "at_most: 16")
    (table / "zoo.yaml").write_text(text)
    outcome = flexswitch("run", "zoo.yaml", "--json")
    assert [step["status"] for step in json.loads(outcome.out)["steps"]] == ["done"] * 4
    assert flexswitch("verify", "zoo").status == 0
    again = flexswitch("run", "--init", "zoo")
    assert (again.status, again.error.split(";")[0]) == (1, "zoo.yaml: exists already")


def test_the_comparison_compresses_every_task_by_every_method(table, flexswitch):
    assert flexswitch("run", "--init", "compare", "mine.yaml").status == 0
    steps = make_plan(Path("mine.yaml")).steps
    assert len(steps) == 2 * 5 + 5 + 5
    for step in steps:
        check_arguments(get_command(step.command), step.arguments)
    assert steps[10].reads == ("compared/t-switch/blue.fsw", "compared/t-switch/red.fsw")


def test_an_unknown_first_recipe_names_the_nearest(flexswitch):
    outcome = flexswitch("run", "--init", "zo")
    assert (outcome.status, outcome.error.split("?")[0]) == (
        2,
        "--init: no recipe is named 'zo'; did you mean 'zoo'",
    )


def test_the_schema_names_the_options_of_each_subcommand(flexswitch):
    schema = json.loads(flexswitch("run", "--schema").out)
    options = {
        each["if"]["properties"]["command"]["const"]: each["then"]["properties"]["options"]["propertyNames"][
            "enum"
        ]
        for each in schema["$defs"]["Step"]["allOf"]
    }
    assert {"set", "per-task", "target-size"} <= set(options["compress"])
    assert {"add", "remove", "effort"} <= set(options["pack"])
    assert set(schema["properties"]) == {"version", "include", "defaults", "steps"}
