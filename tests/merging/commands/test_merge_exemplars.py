"""`merge` with examples: methods that learn from them, settings tuned on them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.checkpoints import message
from support.perceptrons import Perceptrons, doubles, forward, perceptrons, write

import flexswitch
from flexswitch.codecs.errors import InputError, UnusedOptionError, UsageError
from flexswitch.merging.commands.evaluate import evaluate

ADAPTER = "python:support.perceptrons:adapter"


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Perceptrons:
    monkeypatch.chdir(tmp_path)
    found = perceptrons(3, count=40)
    write(found, tmp_path)
    return found


def merge(case: Perceptrons, **options: Any) -> Any:
    sources = [f"{name}.safetensors" for name in case.names]
    needs = {"exemplars", "data"} & options.keys()
    given = {"adapter": ADAPTER} if needs else {}
    return flexswitch.merge(sources, "out", base="base.safetensors", overwrite=True, **{**given, **options})


def test_a_merge_from_examples_is_written_with_what_it_was_made_of(
    case: Perceptrons, flexswitch: Any
) -> None:
    sources = [f"{name}.safetensors" for name in case.names]
    command = ("merge", *sources, "--base", "base.safetensors", "-o", "out", "--method", "regmean")
    found = flexswitch(
        *command, "--exemplars", "exemplars", "--adapter", ADAPTER, "--per-task", "41", "--json"
    )
    assert found.status == 0
    assert json.loads(found.out)["report"] == {
        "exemplars": {"a": 40, "b": 41, "c": 41},
        "split": "train",
        "linear layers": 2,
        "averaged tensors": 3,
    }
    card = Path("out/README.md").read_text()
    assert "- exemplars: a 40, b 41, c 41\n" in card
    assert "--method regmean --exemplars DIR --set shrinkage=0.9 --set ridge=1e-06" in card
    assert not Path("out.training").exists()


def accuracy(case: Perceptrons, task: int) -> float:
    """Returns the accuracy of the written model with a task's head, in %."""
    weights = {name: each.astype(float) for name, each in load_file("out/model.safetensors").items()}
    chances = forward(weights, doubles(case.states[task])["head.weight"], case.inputs[task].astype(float))[2]
    return float(100 * (chances.argmax(axis=1) == case.labels[task]).mean())


def test_tuned_settings_are_those_of_best_accuracy(case: Perceptrons) -> None:
    made = merge(
        case,
        method="ties",
        tune={"lambda": "0:2", "density": "0.2,1"},
        data="exemplars",
        settings={"merge": "sum"},
    )
    tuned = made.report["tuned"]
    assert [row["settings"]["lambda"] for row in tuned["scores"][::2]] == [
        pytest.approx(value, abs=1e-9) for value in np.linspace(0, 2, 10)
    ]
    assert max(row["average"] for row in tuned["scores"]) == pytest.approx(
        np.mean([accuracy(case, task) for task in range(3)])
    )
    card = Path("out/README.md").read_text()
    assert "| lambda | density | average | a | b | c |\n| --- | --- | ---: |" in card
    assert card.count("\n| ") == 22
    for row in tuned["scores"][:3]:
        merge(case, method="ties", settings={"merge": "sum", **row["settings"]})
        found = {name: accuracy(case, task) for task, name in enumerate(case.names)}
        assert row["scores"] == pytest.approx(found)
    chosen = merge(case, method="ties", settings={"merge": "sum", **tuned["chosen"]})
    assert chosen.report == {}


def test_a_range_of_a_whole_number_is_its_whole_numbers(case: Perceptrons) -> None:
    made = merge(case, method="consensus-ta", tune={"k": "1:3"}, data="exemplars")
    assert [row["settings"]["k"] for row in made.report["tuned"]["scores"]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({"method": "fisher"}, UsageError, "fisher learns from examples: give --exemplars DIR"),
        ({"method": "ties", "exemplars": "exemplars"}, UnusedOptionError, "--exemplars: ties reads no examples; leave it out"),
        ({"method": "fisher", "exemplars": "exemplars", "set_for": [("*", {"floor": 1})]}, UsageError, "--set-for: fisher has the same settings for all tensors; use --set"),
        ({"method": "fisher", "exemplars": "exemplars", "weights": {"a": -1}}, UsageError, "--weight a=-1.0: fisher needs weights above 0"),
        ({"method": "fisher", "exemplars": "exemplars", "settings": {"floor": "0.1,0.2"}}, UsageError, "setting floor=0.1,0.2 of fisher: expected a number above 0"),
        ({"method": "fisher", "exemplars": "nowhere"}, InputError, "nowhere: no such folder; expected a folder of <task>.train.jsonl.gz files"),
        ({"method": "fisher", "exemplars": "exemplars", "checkpoint_every": 5}, UsageError, "--checkpoint-every: fisher has no training steps; leave it out"),
        ({"method": "adamerging", "exemplars": "exemplars", "data": "exemplars", "tune": {"start": "0.1,0.2"}, "checkpoint_every": 5}, UsageError, "--checkpoint-every: --tune trains each point anew; leave it out"),
        ({"method": "ties", "tune": {"lambda": "1:2"}}, UsageError, "--tune: needs --data DIR, a folder of labelled <task>.train files"),
        ({"method": "average", "data": "exemplars"}, UnusedOptionError, "--data: it is for --tune; give the settings to tune, or leave it out"),
        ({"method": "ties", "tune": {"lambda": "1:x"}, "data": "exemplars"}, UsageError, "--tune lambda=1:x: expected FROM:TO, or values joined by commas"),
        ({"method": "ties", "tune": {"lambda": "1:inf"}, "data": "exemplars"}, UsageError, "--tune lambda=1:inf: expected FROM:TO, or values joined by commas"),
        ({"method": "consensus-ta", "tune": {"k": "1:2.5"}, "data": "exemplars"}, UsageError, "--tune k=1:2.5: expected whole numbers FROM:TO, or some joined by commas"),
        ({"method": "ties", "tune": {"lambda": "1,x"}, "data": "exemplars"}, UsageError, "setting lambda=x of ties: expected a number"),
        ({"method": "ties", "tune": {"lambda": "1:2"}, "settings": {"lambda": 1}, "data": "exemplars"}, UsageError, "--tune lambda: it is given by --set too; keep one of them"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_and_nothing_is_written(
    case: Perceptrons, options: dict[str, Any], kind: Any, expected: str
) -> None:
    assert message(kind, lambda: merge(case, **options)) == expected
    assert not Path("out").exists()


def test_merged_models_are_scored_beside_the_methods(case: Perceptrons) -> None:
    Path("data").mkdir()
    for name, inputs, labels in zip(case.names, case.inputs, case.labels, strict=True):
        np.savez(f"data/{name}.test.npz", x=inputs, y=labels)
        flexswitch.compress(f"{name}.safetensors", f"{name}.fsw", base="base.safetensors", method="lossless")
    flexswitch.pack([f"{name}.fsw" for name in case.names], "zoo")
    made = {"mean": "average", "fitted": "regmean"}
    for name, method in made.items():
        given = {"exemplars": "exemplars", "adapter": ADAPTER} if method == "regmean" else {}
        flexswitch.merge(["zoo"], name, base="base.safetensors", method=method, **given)
    options = {"base": "base.safetensors", "data": "data", "adapter": ADAPTER}
    found = evaluate("zoo", methods="average", merged={name: name for name in made}, **options)
    scores = {score.method: score for score in found.scores}
    assert list(scores) == ["average", "mean", "fitted"]
    assert scores["mean"].values == scores["average"].values
    assert scores["fitted"].values != scores["average"].values
    assert scores["fitted"].bytes_per_task == scores["average"].bytes_per_task
    for texts, expected in (
        (["fitted"], "--merged fitted: expected NAME=MODEL"),
        (["average=mean"], "--merged average=mean: another row is called average; give it another name"),
    ):
        assert (
            message(
                UsageError, lambda texts=texts: evaluate("zoo", methods="average", merged=texts, **options)
            )
            == expected
        )
