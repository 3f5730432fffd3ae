"""`compress --budget` on tiny models: what it finds, shows and refuses."""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from support.commands import Runner
from support.compressing import Compress
from support.tiny_models import Toy

from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.merging.methods.registry import method_names

SIGNS, FLEX = ("--method", "t-switch"), ("--method", "flexswitch")
NONE = (*FLEX, "--set", "objective=none")
SHORT = (*FLEX, "--set", "steps=4", "--set", "min_exemplars=8", "--per-task", "12")


def without_budget(artifact: Artifact) -> tuple[object, list[object]]:
    """Returns an artifact's header but for the budget, and its tensors as they are stored."""
    header = artifact.header.model_copy(update={"budget": None})
    return header, [artifact.packed_tensor(name) for name in header.tensors]


def share_of_equal_answers(merged: Path, finetuned: Path, texts: list[str]) -> float:
    """Returns how often two models of transformers answer alike."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    batch = AutoTokenizer.from_pretrained(merged)(texts, return_tensors="pt", padding=True, truncation=True)
    answers = []
    for folder in (merged, finetuned):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.inference_mode():
            answers.append(model(**batch).logits.argmax(-1))
    return float((answers[0] == answers[1]).float().mean())


@pytest.mark.parametrize("method", [SIGNS, pytest.param(NONE, marks=pytest.mark.deep)])
def test_what_is_found_keeps_the_share_that_it_says(
    compress: Compress, flexswitch: Runner, text: Toy, tmp_path: Path, method: tuple[str, ...]
) -> None:
    outcome = compress("--exemplars", text.data, "--budget", "agreement=0.7", settings=method)
    assert outcome.status == 0, outcome.err
    found = open_artifact(compress.output)
    budget = found.header.budget
    assert budget is not None
    assert (budget.asked, budget.examples) == (0.7, 20)
    assert budget.kept >= 0.7
    value = found.header.method.settings[budget.setting]
    assert outcome.out.splitlines()[-1] == (
        f"smallest found for agreement=70%: {budget.setting}={value} keeps {100 * budget.kept:.1f} % of the answers to "
        "20 held-out examples"
    )
    tries = {each.value: each for each in budget.tries}
    assert tries[value].agreement == budget.kept
    assert all(each.bytes >= tries[value].bytes for each in budget.tries if each.agreement >= 0.7)
    assert any(each.agreement < 0.7 for each in budget.tries)
    merged = tmp_path / "merged"
    command = ("merge", compress.output, "--base", text.base, "-o", merged, "--task", "birds")
    assert flexswitch(*command).status == 0
    with gzip.open(text.data / "birds.train.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    assert share_of_equal_answers(merged, compress.source, texts) == pytest.approx(budget.kept)
    expected = without_budget(found)
    plain = compress("--overwrite", "--set", f"{budget.setting}={value}", settings=method)
    assert plain.status == 0
    assert without_budget(open_artifact(compress.output)) == expected


@pytest.mark.deep
def test_a_training_is_measured_on_the_exemplars_that_it_holds_out(
    compress: Compress, flexswitch: Runner, text: Toy
) -> None:
    data = ("--exemplars", text.data, "--name", "birds", "--checkpoint-every", 2)
    outcome = compress(*data, "--budget", "agreement=75%", "--json", settings=SHORT)
    assert outcome.status == 0, outcome.err
    assert compress.left() == ["birds.fsw"]
    found, document = open_artifact(compress.output), json.loads(outcome.out)
    budget, training = found.header.budget, found.header.training
    assert budget is not None
    assert training is not None
    assert document["budget"] == json.loads(budget.model_dump_json())
    assert budget.setting == "target_size"
    assert (budget.examples, budget.kept) == (training.held_out, training.after.held_out_agreement)
    assert len(budget.tries) <= 7
    target = str(found.header.method.settings["target_size"])
    shown = flexswitch("inspect", compress.output).out
    assert f"smallest found for agreement=75%: target_size={target} keeps {100 * budget.kept:.1f} %" in shown
    (taken,) = (line.split() for line in shown.splitlines() if line.endswith("taken"))
    assert taken[0] == target
    expected = without_budget(found)
    assert compress(*data, "--target-size", target, "--overwrite", settings=SHORT).status == 0
    assert without_budget(open_artifact(compress.output)) == expected


def test_a_budget_out_of_reach_names_the_best_try(compress: Compress, text: Toy) -> None:
    settings = ("--method", "compeft", "--set", "alpha=0.000001")  # as good as the base
    outcome = compress("--exemplars", text.data, "--budget", "agreement=100%", settings=settings)
    assert outcome.status == 1
    assert re.fullmatch(
        rf"{compress.output}: nothing that was tried reaches agreement=100% on 20 held-out examples: the best is "
        r"\d\d\.\d % at [\d,]+ bytes \(density=0\.25\); ask for less, or take another method",
        outcome.error,
    )
    assert compress.left() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (*FLEX, "--target-size", "4KB"),
            "--budget finds the size, and target_size=4KB sets it; give one of them",
        ),
        ((*SIGNS, "--set", "drop=0.5"), "--budget finds the size, and drop=0.5 sets it; give one of them"),
        ((*FLEX, "--set", "lambda=1"), "--budget finds the size, and lambda=1 sets it; give one of them"),
        (
            ("--method", "bitdelta"),
            "--budget: bitdelta has no setting that decides its size; those that do: "
            + ", ".join(name for name in method_names("compression") if name not in ("bitdelta", "lossless")),
        ),
        (
            (*SIGNS, "--checkpoint-every", "5"),
            "--checkpoint-every: t-switch does not learn from examples; those that do: flexswitch",
        ),
        (
            (*FLEX, "--set", "objective=mse", "--set", "min_exemplars=8", "--per-task", "8"),
            "--budget agreement: objective=mse trains on features, which are no answers; give a --target-size "
            "instead",
        ),
        (
            (*SIGNS, "--adapter", "hf-sentence-embedding"),
            "--budget agreement: the model gives features, which are no answers; give a --target-size instead",
        ),
    ],
)
def test_a_budget_that_cannot_be_searched_is_refused(
    compress: Compress, text: Toy, arguments: tuple[str, ...], message: str
) -> None:
    given = ("--exemplars", text.data, "--budget", "agreement=99%")
    outcome = compress(*given, settings=arguments)
    assert (outcome.status, outcome.error) == (2, message)
    assert compress.left() == []


def test_a_budget_needs_examples_and_the_base(
    compress: Compress, flexswitch: Runner, text: Toy, tmp_path: Path
) -> None:
    message = "--budget is measured on examples that no training used: give --exemplars DIR and --base BASE"
    for settings in ((), SIGNS, FLEX, NONE):
        outcome = compress("--budget", "agreement=99%", settings=settings)
        assert (outcome.status, outcome.error) == (2, message)
    vector = tmp_path / "birds.tv.safetensors"
    assert flexswitch("extract", text.base, compress.source, "-o", vector).status == 0
    command = ("compress", vector, "-o", compress.output, "--exemplars", text.data)
    outcome = flexswitch(*command, "--budget", "agreement=99%")
    assert (outcome.status, outcome.error) == (2, message)


@pytest.mark.parametrize(
    ("fewest", "advice"), [(8, ", or train on 10 with --per-task 10"), (11, "")]
)  # fmt: skip
def test_a_training_on_all_examples_leaves_none_to_measure_on(
    compress: Compress, text: Toy, fewest: int, advice: str
) -> None:
    given = ("--exemplars", text.data, "--budget", "agreement=99%")
    outcome = compress(*given, settings=(*FLEX, "--set", f"min_exemplars={fewest}"))
    assert (outcome.status, outcome.error) == (
        1,
        f"{text.data / 'birds.train.jsonl.gz'}: all 20 examples are used for training, and none is left to "
        f"measure the budget on; give more{advice}",
    )
    assert compress.left() == []


@pytest.mark.deep
def test_steps_of_a_recipe_take_a_budget(
    flexswitch: Runner, text: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEXSWITCH_CACHE", str(tmp_path / "cache"))
    options = {
        "base": str(text.base),
        "exemplars": str(text.data),
        "name": "birds",
        "budget": "agreement=70%",
    }
    own = {
        "signs": {"method": "t-switch"},
        "learned": {"per-task": 12, "set": {"steps": 4, "min_exemplars": 8}},
    }
    steps = [
        {
            "name": name,
            "command": "compress",
            "inputs": [str(text.finetuned["birds"])],
            "options": options | more | {"output": f"{name}.fsw"},
            "expect": {"budget/kept": {"at_least": 0.7}},
        }
        for name, more in own.items()
    ]
    Path("r.yaml").write_text(json.dumps({"version": 1, "steps": steps}))
    outcome = flexswitch("run", "r.yaml", "--report", "r.md")
    assert outcome.status == 0, outcome.err
    for line, name in zip(Path("r.md").read_text().splitlines()[-2:], own, strict=True):
        budget = open_artifact(Path(f"{name}.fsw")).header.budget
        assert budget is not None
        assert f"| {100 * budget.kept:.1f} % | met | done |" in line
    assert flexswitch("run", "r.yaml", "--check").status == 0
    changed = json.loads(Path("r.yaml").read_text())
    changed["steps"][0]["options"]["budget"] = "agreement=7e-1"
    Path("r.yaml").write_text(json.dumps(changed))
    outcome = flexswitch("run", "r.yaml", "--dry-run")
    assert outcome.status == 1
    assert outcome.error.endswith(
        "--budget agreement=7e-1: expected agreement=SHARE, a share such as 99% or 0.99"
    )
