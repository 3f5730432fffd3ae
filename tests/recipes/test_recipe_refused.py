"""A recipe that cannot be read is refused in one line that names the step or line, and soon."""

import time
from pathlib import Path

import pytest

from flexswitch.codecs.errors import ExpectationError, InputError
from flexswitch.recipes.expectations import check_expectations
from flexswitch.recipes.plan import PlannedStep
from flexswitch.recipes.recipe import Bound, read_recipe

MAPPING = "expected a mapping of keys to values"
OPTION = "expected a text, a number, true or false, or a list or a mapping of those"
VALUES = "expected a list of at least one text, or {glob: PATTERN}"
ANY_BOUND = "expected at least one of at_least, at_most and equals"


def message(folder: Path, text: str) -> str:
    """Returns the line with which a recipe is refused, behind the name of its file."""
    path = folder / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    found = str(caught.value)
    assert "\n" not in found
    assert found.startswith(str(path))
    return found.removeprefix(str(path)).removeprefix(": ").removeprefix(", ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", f"the recipe is empty, {MAPPING}"),
        ("a", f"the recipe is 'a', {MAPPING}"),
        ("version: 1", "lacks the key 'steps'"),
        ("version: '1'\nsteps: []", "'version' is '1', expected 1"),
        ("version: 1\nsteps: []", "'steps' is a list of 0, expected at least one"),
        ("version: 1\nsteps: [a]", f"step 1: the step is 'a', {MAPPING}"),
        ("version: 1\nsteps: [{name: 1}]", "step 1: 'name' is 1, expected a text (put it in quotes)"),
        ("version: 1\nsteps: [{name: a}]", "step 1, 'a': lacks the key 'command'"),
    ],
)
def test_a_wrong_recipe(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inputs: a", "'inputs' is 'a', expected a list"),
        ("inputs: [a, 1]", "'inputs/2' is 1, expected a text (put it in quotes)"),
        ("inputs: [null]", "'inputs/1' is empty, expected a text (put it in quotes)"),
        ("options: a", f"'options' is 'a', {MAPPING}"),
        ("options: {a: [[1]]}", f"'options/a' is a list of 1, {OPTION}"),
        ("options: {a: {b: {c: 1}}}", f"'options/a' is a mapping of 1, {OPTION}"),
        ("foreach: {a: []}", f"'foreach' is a mapping of 1, {VALUES}"),
        ("foreach: {a: [1]}", f"'foreach' is a mapping of 1, {VALUES}"),
        ("foreach: {a: {glub: x}}", f"'foreach' is a mapping of 1, {VALUES}"),
        ("foreach: {a-b: [c]}", "'foreach' is a mapping of 1, expected names of letters, digits and '_'"),
        ("foreach: {table: [c]}", "'foreach' is a mapping of 1, expected a file of comma-separated values behind 'table'"),
        ("needs: {cpus: 0}", "'needs/cpus' is 0, expected 1 or more"),
        ("needs: {memory: much}", "'needs/memory' is 'much', expected a size such as 8GB"),
        ("needs: {memory: 9999999999999999GB}", "'needs/memory' is '9999999999999999GB', expected a size such as 8GB"),
        ("needs: {cpu: 1}", "no key is named 'cpu'; did you mean 'cpus'? (known: cpus, gpus, memory) in 'needs'"),
        ("expect: {a: 1}", f"'expect/a' is 1, {MAPPING}"),
        ("expect: {a: {}}", f"'expect/a' is a mapping of 0, {ANY_BOUND}"),
        ("expect: {a: {at_least: null}}", f"'expect/a' is a mapping of 1, {ANY_BOUND}"),
        ("expect: {a: {at_least: x}}", "'expect/a/at_least' is 'x', expected a number"),
        ("expect: {a: {at_least: .nan}}", "'expect/a/at_least' is nan, expected a finite number"),
        ("expect: {a: {equals: [1]}}", "'expect/a/equals' is a list of 1, expected a text, a number, true or false"),
    ],
)  # fmt: skip
def test_a_wrong_step_is_named_and_counted_from_one(tmp_path: Path, text: str, expected: str) -> None:
    recipe = f"version: 1\nsteps:\n- {{name: a, command: b}}\n- {{name: c, command: d, {text}}}"
    assert message(tmp_path, recipe) == f"step 2, 'c': {expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 50_000, "is nested too deeply; a recipe has six levels"),
        ("- " * 50_000, "is nested too deeply; a recipe has six levels"),
        ("a: !!int b", "line 1: is not a recipe's YAML (the tag '!!int' is not used in recipes; leave it out)"),
        ("a: !!python/name:os.system", "line 1: is not a recipe's YAML (the tag '!!python/name:os.system' is "
         "not used in recipes; leave it out)"),
        ("a:\n  " + "9" * 5000, "line 2: is not a recipe's YAML (a whole number of 5000 digits, expected 18 at most)"),
        ("? [1]\n: 2", "line 1: is not a recipe's YAML (the key, a list or mapping, is no text; put it in quotes)"),
        ("null: 1", "line 1: is not a recipe's YAML (the key, 'null', is no text; put it in quotes)"),
        ('a: "\\ud800"', "line 1: is not a recipe's YAML (a text holds a NUL or half a surrogate pair, which no "
         "text has)"),
        ("a: &a [*a]", "has more than 100,000 values or 10,000,000 letters, each alias (*) counted as what it stands for; divide it"),
        ("\n".join(["a: &b0 [x, x]", *(f"a{n}: &b{n + 1} [{', '.join([f'*b{n}'] * 10)}]" for n in range(9))]),
         "has more than 100,000 values or 10,000,000 letters, each alias (*) counted as what it stands for; divide it"),
        ("#" * 1_000_001, "has 1,000,001 bytes, and a recipe has 1,000,000 at most; divide it"),
    ],
    ids=str,
)  # fmt: skip
def test_hostile_yaml(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text) == expected


def test_many_keys_take_a_time_in_proportion(tmp_path: Path) -> None:
    began = time.process_time()
    text = "\n".join(f"k{number}: 1" for number in range(20_000))
    assert message(tmp_path, text).startswith("no key is named 'k0'")
    assert time.process_time() - began < 8


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("1:30", "1:30"),
        ("-2.5", -2.5),
        ("1_000", "1_000"),
    ],
)
def test_numbers_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "a.yaml").write_text(f"version: 1\nsteps: [{{name: a, command: b, options: {{c: {text}}}}}]")
    (step,) = read_recipe(tmp_path / "a.yaml").steps
    assert step.options["c"] == value
    assert type(step.options["c"]) is type(value)


def test_no_is_a_text_as_in_yaml_1_2(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "version: 1\nsteps: [{name: no, command: yes, options: {a: true, b: off}}]"
    )
    (step,) = read_recipe(tmp_path / "a.yaml").steps
    assert (step.name, step.command, step.options) == ("no", "yes", {"a": True, "b": "off"})


def test_a_date_is_a_text_and_an_alias_stands_for_its_value(tmp_path: Path) -> None:
    text = "version: 1\nsteps:\n- {name: 2026-13-45, command: a, inputs: &i [b]}\n"
    (tmp_path / "a.yaml").write_text(text + "- {name: c, command: d, inputs: *i}")
    first, second = read_recipe(tmp_path / "a.yaml").steps
    assert (first.name, first.inputs, second.inputs) == ("2026-13-45", ["b"], ["b"])


@pytest.mark.parametrize(
    ("found", "bound", "error"),
    [
        (1.5, Bound(at_least=1, at_most=2), None),
        (True, Bound(equals=True), None),
        ("zoo", Bound(equals="zoo"), None),
        (True, Bound(equals=1), "a is True, expected 1"),
        (0.5, Bound(at_least=1), "a is 0.5, expected at least 1.0"),
        ("x", Bound(at_least=1, equals="x"), "a is 'x', no number, so it can only be compared by 'equals'"),
        (None, Bound(at_most=1), "a is None, no number, so it can only be compared by 'equals'"),
        ([1], Bound(at_most=1), "a is [1], no number, so it can only be compared by 'equals'"),
    ],
)
def test_bounds_of_figures(found: object, bound: Bound, error: str | None) -> None:
    step = PlannedStep("s", "s", "verify", {}, "", (), (), (), expect={"a": bound})
    if error is None:
        check_expectations(step, {"a": found})
        return
    with pytest.raises((ExpectationError, InputError)) as caught:
        check_expectations(step, {"a": found})
    assert str(caught.value) == error
