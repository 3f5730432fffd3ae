"""Recipes run subcommands in order, are checked before the first one starts, and stop at a failure."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from support.commands import files_below

from flexswitch.recipes.commands import check_arguments, get_command
from flexswitch.recipes.graph import make_graph
from flexswitch.recipes.plan import make_plan

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = [FOLDER / "digits.yaml", FOLDER / "rtvq.yaml", FOLDER / "language.yaml"]

RECIPE = """
version: 1
steps:
  - name: compress {task}
    command: compress
    foreach: {task: [red, blue]}
    inputs: ["{task}.safetensors"]
    options: {base: base.safetensors, output: "{task}.fsw", method: t-switch, set: {drop: 0.6}}
  - name: pack
    command: pack
    inputs: [red.fsw, blue.fsw]
    options: {output: zoo}
    expect:
      tasks/red/bits_per_parameter: {at_least: 1, at_most: 16}
      output: {equals: zoo}
"""


def test_a_recipe_runs_its_steps_in_order(models, flexswitch):
    (models / "recipe.yaml").write_text(RECIPE)
    outcome = flexswitch("run", "recipe.yaml")
    assert outcome.status == 0
    assert (
        "$ flexswitch compress red.safetensors --base base.safetensors --output red.fsw --method t-switch "
        "--set drop=0.6" in outcome.err
    )
    assert outcome.err.index("step 1 of 3: compress red") < outcome.err.index("step 3 of 3: pack")
    assert flexswitch("verify", "zoo").status == 0


def test_a_recipe_prints_one_json_document(models, flexswitch):
    (models / "recipe.yaml").write_text(RECIPE)
    document = json.loads(flexswitch("run", "recipe.yaml", "--json").out)
    assert [step["name"] for step in document["steps"]] == ["compress red", "compress blue", "pack"]
    assert document["steps"][2]["result"]["output"] == "zoo"


def test_a_missing_input_is_found_before_the_first_step(models, flexswitch):
    (models / "blue.safetensors").unlink()
    (models / "recipe.yaml").write_text(RECIPE)
    outcome = flexswitch("run", "recipe.yaml")
    expected = (
        "recipe.yaml: step 'compress blue': blue.safetensors: no such file or folder, and no step writes it"
    )
    assert (outcome.status, outcome.error) == (1, expected)
    assert not (models / "red.fsw").exists()


def test_a_recipe_stops_at_the_first_failure_with_its_status_and_names_the_log(models, flexswitch):
    (models / "blue.safetensors").write_bytes(b"damaged")
    (models / "recipe.yaml").write_text(RECIPE)
    outcome = flexswitch("run", "recipe.yaml")
    assert outcome.status == 1
    assert outcome.error.startswith("recipe.yaml: step 'compress blue': blue.safetensors: ")
    log = "recipe.logs/0002-compress-blue.log"
    assert outcome.error.endswith(f"(log: {log}); 1 steps were left out")
    assert "blue.safetensors" in (models / log).read_text()
    assert "zoo" not in files_below(models)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("at_least: 1,", "at_least: 99,", "tasks/red/bits_per_parameter is {}, expected at least 99.0"),
        ("at_most: 16", "at_most: 1", "tasks/red/bits_per_parameter is {}, expected at most 1.0"),
        ("equals: zoo", "equals: zoos", "output is zoo, expected zoos"),
    ],
)
def test_an_expectation_that_is_not_met_ends_with_status_4(models, flexswitch, old, new, message):
    (models / "recipe.yaml").write_text(RECIPE.replace(old, new))
    outcome = flexswitch("run", "recipe.yaml")
    zoo = json.loads((models / "zoo" / "zoo.json").read_text())["tasks"]["red"]
    found = 8 * zoo["size"] / zoo["parameters"]
    assert outcome.status == 4
    assert outcome.error.startswith(f"recipe.yaml: step 'pack': {message.format(found)} (log: ")
    again = flexswitch("run", "recipe.yaml")
    assert (again.status, again.error) == (4, f"recipe.yaml: step 'pack': {message.format(found)}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "steps:",
            "stepps:",
            ": no key is named 'stepps'; did you mean 'steps'?",
        ),
        (
            "inputs: [red",
            "input: [red",
            ": step 2, 'pack': no key is named 'input'; did you mean 'inputs'?",
        ),
        ("version: 1", "version: 2", ": 'version' is 2, expected 1"),
        (
            "command: pack",
            "command: pakc",
            ": step 'pack': no subcommand is named 'pakc'; did you mean 'pack'?",
        ),
        (
            "options: {output: zoo}",
            "options: {outputs: zoo}",
            ": step 'pack': no option of pack is named 'outputs'; did you mean 'output'?",
        ),
        (
            "version: 1",
            "version: 1\nversion: 1",
            ", line 3: is not a recipe's YAML (key 'version' is repeated)",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_runs(models, flexswitch, old, new, message):
    (models / "recipe.yaml").write_text(RECIPE.replace(old, new))
    before = files_below(models)
    outcome = flexswitch("run", "recipe.yaml")
    assert outcome.status == 1
    assert outcome.error.startswith(f"recipe.yaml{message}")
    assert files_below(models) == before


def test_a_step_with_a_wrong_value_is_named(models, flexswitch):
    (models / "recipe.yaml").write_text(RECIPE.replace("output: zoo}", "output: zoo, effort: huge}"))
    outcome = flexswitch("run", "recipe.yaml")
    expected = "recipe.yaml: step 'pack': no effort is named 'huge'"
    assert (outcome.status, outcome.error[: len(expected)]) == (1, expected)


@pytest.mark.deep
def test_an_interrupt_ends_the_recipe(models):
    (models / "recipe.yaml").write_text(RECIPE)
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores them
    command = [sys.executable, "-m", "flexswitch.cli", "run", "recipe.yaml"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stderr.readline() == "flexswitch: step 1 of 3: compress red\n"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "step 2" not in rest
    assert rest.endswith("flexswitch: interrupted; nothing half-written is left\n")


def test_a_missing_recipe(models, flexswitch):
    outcome = flexswitch("run", "no.yaml")
    assert (outcome.status, outcome.error) == (1, "no.yaml: no such recipe")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_of_ours_is_valid_and_says_how_it_is_run(path):
    plan = make_plan(path)
    assert make_graph(plan).order
    for step in plan.steps:
        check_arguments(get_command(step.command), step.arguments)
    assert path.read_text().startswith(f"# flexswitch run recipes/{path.name}\n")


def test_numbers_and_switches_become_options(tmp_path):
    steps = [
        {
            "name": "a",
            "command": "pack",
            "options": {"output": "z", "add": True, "codec": "raw", "remove": ["x", "y"]},
        }
    ]
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(sort_keys=False, data={"version": 1, "steps": steps})
    )
    (step,) = make_plan(tmp_path / "recipe.yaml").steps
    assert step.line == "flexswitch pack --output z --add --codec raw --remove x --remove y"
    assert (step.writes, step.changes) == ((), ("z",))
