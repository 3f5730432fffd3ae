"""The small recipe, and a way to run it."""

import json

import pytest
from support.small_recipe import RECIPE


@pytest.fixture
def recipe(models, monkeypatch):
    monkeypatch.setenv("FLEXSWITCH_CACHE", str(models / "cache"))
    path = models / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def run(flexswitch, recipe):
    """Runs the recipe and returns the names of the steps that ran."""

    def ran(*words: object) -> list[str]:
        outcome = flexswitch("run", "recipe.yaml", "--json", *words)
        assert outcome.status == 0, outcome.err
        return [step["name"] for step in json.loads(outcome.out)["steps"] if step["status"] == "done"]

    return ran
