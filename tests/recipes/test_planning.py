"""A recipe becomes steps in an order that follows from the paths which they read and write."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexswitch.codecs.errors import InputError
from flexswitch.recipes.graph import Graph, make_graph, share_of
from flexswitch.recipes.plan import make_plan

COMPRESS = {
    "name": "compress {task}",
    "command": "compress",
    "foreach": {"task": ["red", "blue"]},
    "inputs": ["{task}.safetensors"],
    "options": {"base": "base.safetensors", "output": "out/{task}.fsw"},
}
PACK = {"name": "pack", "command": "pack", "inputs": ["out/*.fsw"], "options": {"output": "zoo"}}
VERIFY = {"name": "verify", "command": "verify", "inputs": ["zoo"]}
INDEX = {
    "name": "index",
    "command": "index",
    "inputs": ["zoo"],
    "options": {"base": "b", "exemplars": "data"},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def graph(*steps: dict[str, Any], **more: Any) -> Graph:
    Path("r.yaml").write_text(yaml.safe_dump({"version": 1, "steps": list(steps), **more}, sort_keys=False))
    return make_graph(make_plan(Path("r.yaml")))


def refusal(*steps: dict[str, Any], **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        graph(*steps, **more)
    return str(caught.value)


def ordered(made: Graph) -> list[str]:
    return [made.plan.steps[number].name for number in made.order]


def waits(made: Graph) -> dict[str, set[str]]:
    steps = made.plan.steps
    return {
        steps[number].name: {steps[each].name for each in made.before[number]} for number in range(len(steps))
    }


def test_steps_wait_for_those_that_write_what_they_read_wherever_they_stand() -> None:
    made = graph(VERIFY, PACK, COMPRESS)
    assert waits(made) == {
        "verify": {"pack"}, "pack": {"compress red", "compress blue"}, "compress red": set(), "compress blue": set(),
    }  # fmt: skip
    assert ordered(made)[-2:] == ["pack", "verify"]
    assert made.plan.steps[1].line == "flexswitch pack out/blue.fsw out/red.fsw --output zoo"


def test_a_step_that_changes_a_zoo_comes_after_those_before_it_that_read_the_zoo() -> None:
    made = graph(COMPRESS, PACK, VERIFY, INDEX, {**VERIFY, "name": "verify again"})
    found = waits(made)
    assert found["index"] == {"pack", "verify"}
    assert found["verify again"] == {"index"}


def test_a_table_a_glob_and_a_list_give_the_values_of_names() -> None:
    Path("zoo.csv").write_text("task,model\nred,models/r\nblue,models/b\n")
    Path("models/r").mkdir(parents=True)
    Path("models/b").mkdir()
    step = {"command": "extract", "inputs": ["base", "{model}"]}
    made = graph(
        {**step, "name": "{task} {drop}", "foreach": {"table": "zoo.csv", "drop": ["1", "2"]},
         "options": {"output": "{task}-{drop}.tv.safetensors"}},
        {**step, "name": "{each}", "inputs": ["base", "{each.path}"], "foreach": {"each": {"glob": "models/*"}},
         "options": {"output": "{each}.tv.safetensors"}},
    )  # fmt: skip
    names = [step.name for step in made.plan.steps]
    assert names == ["red 1", "red 2", "blue 1", "blue 2", "b", "r"]
    assert made.plan.steps[2].reads == ("base", "models/b")
    assert made.plan.steps[4].reads == ("base", "models/b")


def test_defaults_are_options_of_the_steps_that_have_them_and_null_takes_one_away() -> None:
    steps = (COMPRESS, PACK, {**VERIFY, "options": {"base": None}}, {**VERIFY, "name": "with"})
    made = graph(*steps, defaults={"base": "models/base", "effort": "small"})
    lines = {step.name: step.line for step in made.plan.steps}
    assert lines["pack"].endswith("--effort small --output zoo") or lines["pack"].endswith(
        "--output zoo --effort small"
    )
    assert lines["verify"] == "flexswitch verify zoo"
    assert lines["with"] == "flexswitch verify zoo --base models/base"
    assert "--base base.safetensors" in lines["compress red"]


INCLUDED = "r.yaml: includes itself, or is included twice; leave that out of 'include'"


def test_a_default_that_would_do_nothing_in_a_step_is_left_out_there() -> None:
    merge = {"command": "merge", "inputs": ["z"]}
    made = graph(
        {
            "name": "a",
            "command": "compress",
            "inputs": ["m"],
            "options": {"output": "a.fsw", "method": "t-switch"},
        },
        {
            "name": "b",
            "command": "compress",
            "inputs": ["m"],
            "options": {"output": "b.fsw", "method": "flexswitch"},
        },
        {"name": "c", "command": "pack", "inputs": ["a.fsw"], "options": {"output": "z"}},
        {"name": "d", "command": "index", "inputs": ["z"]},
        {**merge, "name": "e", "options": {"output": "e", "method": "average"}},
        {**merge, "name": "f", "options": {"output": "f", "method": "ties", "tune": {"lambda": "0.5"}}},
        {**merge, "name": "g", "options": {"output": "g", "task": "a"}},
        defaults={"base": "base", "exemplars": "data", "data": "test", "per-task": 40},
    )
    defaults = {
        step.name: set(step.line.split()) & {"base", "data", "test", "40"} for step in made.plan.steps
    }
    assert defaults == {
        "a": {"base"}, "b": {"base", "data", "40"}, "c": set(), "d": {"base", "data", "40"},
        "e": {"base"}, "f": {"base", "test", "40"}, "g": {"base"},
    }  # fmt: skip
    assert "per-task" not in made.plan.steps[4].line
    own = {**merge, "name": "e", "options": {"output": "e", "method": "average", "data": "test"}}
    assert (
        "--data test" in graph(own, defaults={"base": "base"}).plan.steps[0].line
    )  # and it is refused later


def test_an_included_recipe_comes_first() -> None:
    Path("a.yaml").write_text(
        yaml.safe_dump({"version": 1, "steps": [COMPRESS], "defaults": {"on-resize": "rows"}})
    )
    made = graph(PACK, include=["a.yaml"])
    assert [step.name for step in made.plan.steps] == ["compress red", "compress blue", "pack"]
    assert "--on-resize rows" in made.plan.steps[0].line
    assert refusal(PACK, include=["r.yaml"]) == INCLUDED
    assert refusal(PACK, include=["a.yaml", "./a.yaml"]) == INCLUDED.replace("r.yaml", "a.yaml")


def test_files_that_no_step_writes_are_left_out_of_a_pattern_with_a_note() -> None:
    Path("out").mkdir()
    Path("out/old.fsw").touch()
    made = graph(COMPRESS, PACK)
    assert made.plan.notes == ["'out/*.fsw' takes what steps of this recipe write; left out are out/old.fsw"]
    assert graph(PACK).plan.steps[0].reads == ("out/old.fsw",)


def test_a_note_names_outputs_in_folders_below_that_a_pattern_does_not_reach() -> None:
    made = graph({**COMPRESS, "foreach": {"task": ["red", "nlp/blue"]}}, PACK)
    assert made.plan.notes == ["'out/*.fsw' leaves out what steps write in folders below: out/nlp/blue.fsw"]
    assert ordered(made) == ["compress red", "compress nlp/blue", "pack"]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((PACK,), "r.yaml: step 'pack': 'out/*.fsw' matches no output of a step and no file"),
        ((COMPRESS, {**COMPRESS, "name": "again {task}"}), "r.yaml: the steps 'compress red' and 'again red' both "
         "write out/red.fsw; give one of them another output"),
        ((COMPRESS, {**PACK, "options": {"output": "out"}}), "r.yaml: the steps 'pack' and 'compress red' write out "
         "and out/red.fsw in it; give one of them an output elsewhere"),
        (({**COMPRESS, "name": "one"},), "r.yaml: two steps are named 'one'; put the values of foreach into the name, "
         "as {task}, and give each once"),
        (({**COMPRESS, "foreach": {"task": ["../red", "blue"]}},), "r.yaml: step 'compress {task}': 'output' is "
         "'out/{task}.fsw' and becomes 'out/../red.fsw', which is outside of out"),
        (({**COMPRESS, "foreach": {"task": ["/red"]}, "options": {"output": "./out/a/../{task}/../../b.fsw"}},), "r.yaml: step "
         "'compress {task}': 'output' is './out/a/../{task}/../../b.fsw' and becomes './out/a/..//red/../../b.fsw', which is "
         "outside of ./out/a/.."),
        ((PACK | {"inputs": ["{taks}.fsw"], "foreach": {"task": ["a"]}},), "r.yaml: step 'pack': no value of foreach is "
         "named 'taks'; did you mean 'task'? (known: task); write {{ for a brace itself"),
        ((VERIFY | {"inputs": []},), "r.yaml: step 'verify': 'inputs' is a list of 0, expected PATH"),
        ((VERIFY | {"inputs": ["a", "b"]},), "r.yaml: step 'verify': 'inputs' is a list of 2, expected PATH"),
        ((PACK | {"inputs": ["a.fsw"], "options": {}},), "r.yaml: step 'pack': lacks the option 'output' of pack"),
        ((PACK | {"inputs": ["a.fsw"], "options": {"output": "."}},), "r.yaml: step 'pack': '.' is no name of an output; give "
         "a path that ends in one"),
        ((PACK | {"inputs": ["a.fsw"], "options": {"output": ""}},), "r.yaml: step 'pack': '.' is no name of an output; give "
         "a path that ends in one"),
        ((PACK | {"inputs": ["a.fsw"], "options": {"output": "../.."}},), "r.yaml: step 'pack': '../..' is no name of an "
         "output; give a path that ends in one"),
        ((VERIFY | {"inputs": ["{path}"], "foreach": {"path": ["/"]}},), "r.yaml: step 'verify': '/' holds the current "
         "folder, so that all in both would be read; give the file or folder that is meant"),
        ((PACK | {"inputs": ["../a.fsw", "a/../.."], "options": {"output": "zoo"}},), "r.yaml: step 'pack': '..' holds the "
         "current folder, so that all in both would be read; give the file or folder that is meant"),
        ((VERIFY | {"command": "inspect"},), "r.yaml: step 'verify': no subcommand is named 'inspect' "
         "(known: extract, compress, pack, index, merge, eval, verify, push)"),
        ((VERIFY | {"foreach": {name: [*"abcdefghij"] for name in "uvwxyz"}},), "r.yaml: step 'verify': 'foreach' repeats "
         "the step 1,000,000 times, expected 100,000 at most"),
        ((VERIFY | {"name": "{a}" * 200, "foreach": {"a": ["b" * 100]}},), f"r.yaml: step '{'{a}' * 200}': a text becomes "
         "longer than 10,000 letters by its names in braces"),
        ((VERIFY | {"foreach": {"table": "no.csv"}},), "r.yaml: step 'verify': no.csv: no such table"),
        ((VERIFY | {"foreach": {"a": {"glob": "no/*"}}},), "r.yaml: step 'verify': 'foreach/a': no path matches 'no/*'"),
        (({"name": "a", "command": "merge", "inputs": ["m2"], "options": {"base": "b", "output": "m1", "method": "average"}},
          {"name": "b", "command": "merge", "inputs": ["m1"], "options": {"base": "b", "output": "m2", "method": "average"}}),
         "r.yaml: these steps wait for each other: 'a' → 'b' → 'a'; a step reads what the one before it writes"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_planned_is_refused(steps: tuple[dict[str, Any]], message: str) -> None:
    assert refusal(*steps) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv, line 1: expected the names of the columns, each once"),
        ("a,a\n1,2", "t.csv, line 1: expected the names of the columns, each once"),
        ("a,b\n1", "t.csv, line 2: has 1 values, expected 2"),
        ("a,b\n", "t.csv: has no row below the names of its columns"),
    ],
)
def test_a_wrong_table_is_refused(text: str, message: str) -> None:
    Path("t.csv").write_text(text)
    assert refusal(VERIFY | {"foreach": {"table": "t.csv"}}) == f"r.yaml: step 'verify': {message}"


def test_a_table_that_is_no_file_is_refused() -> None:
    os.mkfifo("t.csv")  # reading it would wait for ever
    assert refusal(VERIFY | {"foreach": {"table": "t.csv"}}) == "r.yaml: step 'verify': t.csv: no such table"


def test_a_default_that_no_step_takes_is_refused() -> None:
    expected = "r.yaml: in 'defaults': no option is named 'bas'; did you mean 'base'?"
    assert refusal(VERIFY, defaults={"bas": "x"}).startswith(expected)


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_shares_hold_whole_chains_and_what_joins_them_is_left(shares: int) -> None:
    tasks = [f"t{number}" for number in range(7)]
    extract = {
        "name": "extract {task}", "command": "extract", "foreach": {"task": tasks}, "inputs": ["base", "{task}"],
        "options": {"output": "tv/{task}.tv.safetensors"},
    }  # fmt: skip
    compress = COMPRESS | {"foreach": {"task": tasks}, "inputs": ["tv/{task}.tv.safetensors"]}
    made = graph(extract, compress, PACK)
    found = share_of(made, shares)
    assert [found[number] for number in range(7)] == [number % shares for number in range(7)]
    assert found[7:14] == found[:7]
    assert found[14] == (0 if shares == 1 else None)
