"""Language models are merged from examples by the distributions of their next tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import message
from support.perceptrons import Perceptrons, perceptrons
from support.tiny_language_models import language_toy
from support.tiny_models import Toy
from torch import Tensor

import flexswitch
from flexswitch.codecs.draws import seeded_generator
from flexswitch.codecs.errors import InputError, UsageError

Weights = dict[str, Tensor]
TRAINED = {"adamerging": {"steps": 6, "rate": 0.1}, "concrete-ta": {"steps": 6, "rate": 0.3}}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return language_toy(tmp_path_factory.mktemp("language"))


def merge(toy: Toy, out: Path, method: str, tasks: list[str], **options: Any) -> tuple[Weights, Any]:
    """Returns the merged weights and the report."""
    made = flexswitch.merge(
        [toy.finetuned[task] for task in tasks],
        out,
        base=toy.base,
        method=method,
        exemplars=toy.data,
        **options,
    )
    return load_file(out / "model.safetensors"), made.report


def texts(toy: Toy, task: str) -> list[str]:
    """Returns the plain texts of a task's train file."""
    lines = (toy.data / f"{task}.train.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def logits_of(folder: Path, toy: Toy, text: str) -> Tensor:
    """Returns a text's logits in float64, (token, vocabulary), without padding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(toy.base)(text, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    found: Tensor = model(input_ids=tokens["input_ids"]).logits[0]
    return found


@pytest.mark.deep
@pytest.mark.parametrize("method", TRAINED)
def test_a_training_lowers_the_entropy_of_the_next_tokens(toy: Toy, tmp_path: Path, method: str) -> None:
    """That of held-out texts, each the mean over its tokens, is computed anew from what is written."""
    _, report = merge(toy, tmp_path / "out", method, ["tools"], settings=TRAINED[method])
    assert report["entropy after"] < report["entropy before"]
    held_out = texts(toy, "tools")[4::5]
    assert report["held out"] == {"tools": len(held_out)}
    with torch.no_grad():
        chances = [logits_of(tmp_path / "out", toy, text).log_softmax(-1) for text in held_out]
    entropies = [float(-(each.exp() * each).sum(-1).mean()) for each in chances]
    assert report["entropy after"] == pytest.approx(np.mean(entropies), rel=1e-5)


@pytest.mark.deep
def test_fisher_information_is_that_of_drawn_tokens(toy: Toy, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    found, _ = merge(
        toy, tmp_path / "out", "fisher", ["tools"], settings={"expectation": "sampled", "floor": 1e-30}
    )
    own = load_file(toy.finetuned["tools"] / "model.safetensors")
    for name, weights in found.items():  # of one task, it is its own model wherever it matters
        torch.testing.assert_close(weights, own[name], atol=1e-6, rtol=0)
    sums: Weights = {}
    shares: Weights = {}
    settings = {"expectation": "sampled", "seed": 3}
    two = ["tools", "birds"]
    base = load_file(toy.base / "model.safetensors")
    copy = tmp_path / "data"
    copy.mkdir()
    for task in two:
        (copy / f"{task}.train.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts(toy, "tools")[:4])
        )
    plain = Toy(toy.base, toy.finetuned, toy.zoo, copy)
    found, _ = merge(plain, tmp_path / "two", "fisher", two, settings=settings)
    for task in two:
        model = AutoModelForCausalLM.from_pretrained(toy.finetuned[task]).double().eval()
        total: Weights = {}
        lines = texts(toy, "tools")[:4]
        for number, text in enumerate(lines):
            uniform = np.random.Generator(seeded_generator(3, task, f"example {number}")).random
            total = added(total, squares(model, toy, text, uniform))
        for name, each in total.items():
            weight = each / len(lines) + 1e-6
            sums[name] = sums.get(name, 0) + weight * (own_weights(toy, task)[name] - base[name])
            shares[name] = shares.get(name, 0) + weight
    for name, weights in found.items():
        torch.testing.assert_close(
            weights.double(), base[name] + sums[name] / shares[name], atol=1e-5, rtol=0
        )


def own_weights(toy: Toy, task: str) -> Weights:
    return {
        name: each.double() for name, each in load_file(toy.finetuned[task] / "model.safetensors").items()
    }


def added(one: Weights, other: Weights) -> Weights:
    return {name: one.get(name, 0) + each for name, each in other.items()}


def squares(model: Any, toy: Toy, text: str, uniform: Any) -> Weights:
    """Returns the squared gradients of the log-probability of one drawn token after each of a text's."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(toy.base)(text, return_tensors="pt")["input_ids"]
    logarithms = model(input_ids=tokens).logits[0].log_softmax(-1)
    draws = uniform((len(logarithms), 1))[:, 0]
    chances = np.cumsum(logarithms.detach().exp().numpy(), axis=1)
    drawn = [int((row <= draw).sum()) for row, draw in zip(chances, draws, strict=True)]
    total = logarithms[torch.arange(len(drawn)), drawn].sum()
    named = dict(model.named_parameters())
    return {
        name: each**2
        for name, each in zip(named, torch.autograd.grad(total, list(named.values())), strict=True)
    }


@pytest.mark.deep
def test_what_needs_classes_says_so(toy: Toy, tmp_path: Path) -> None:
    for settings in ({}, {"expectation": "batch-sum"}):
        found = message(
            UsageError, lambda s=settings: merge(toy, tmp_path / "o", "fisher", ["tools"], settings=s)
        )
        assert found.endswith("are tokens, too many for it; give --set expectation=sampled")
    with pytest.raises(InputError, match=r"label|but this merge needs a classifier"):
        merge(toy, tmp_path / "o", "df-merge", ["birds"])
    assert not (tmp_path / "o").exists()


def test_the_mean_of_sampled_information_is_the_exact_one() -> None:
    """The merge depends on it by a quotient, so that of many copies of the examples is compared."""
    case = perceptrons(2, count=6)
    many = Perceptrons(
        case.base,
        case.states,
        [np.tile(inputs, (300, 1)) for inputs in case.inputs],
        [np.tile(labels, 300) for labels in case.labels],
    )
    found, _ = many.merged("fisher", {"expectation": "sampled"})
    exact, _ = case.merged("fisher")
    changed, _ = case.merged("fisher", {"expectation": "sampled"})
    for name, weights in exact.items():
        torch.testing.assert_close(found[name], weights, atol=0.05, rtol=0)
    assert any(not torch.allclose(changed[name], weights, atol=0.05) for name, weights in exact.items())


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    case = perceptrons(2)
    one, _ = case.merged("fisher", {"expectation": "sampled", "seed": 1})
    again, _ = case.merged("fisher", {"expectation": "sampled", "seed": 1}, jobs=3)
    other, _ = case.merged("fisher", {"expectation": "sampled", "seed": 2})
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
