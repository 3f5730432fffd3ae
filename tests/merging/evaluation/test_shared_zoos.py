"""Zoos whose tasks share a vector are indexed, scored and switched as all others are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.evaluations import examples_of, index, percent, scores_of
from support.tiny_models import Toy, plain_predictions

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.commands.verify import verify
from flexswitch.merging.methods.registry import method_names
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.restore import restore

FORMS = [
    method if method == "emr" else pytest.param(method, marks=pytest.mark.deep)
    for method in method_names("shared")
]


def sharing(text: Toy, folder: Path, method: str) -> Toy:
    """Returns the toy with a zoo of the same models that share a vector."""
    pack(text.pairs(), folder / "zoo", share=method, base=text.base)
    return Toy(text.base, text.finetuned, folder / "zoo", text.data)


def mixed(text: Toy, folder: Path, method: str) -> Toy:
    """Returns the toy with a zoo of two tasks that share a vector and one, added later, that needs none."""
    *shared, last = text.pairs()
    pack(shared, folder / "zoo", share=method, base=text.base)
    task, path = last.split("=")
    compress(path, folder / "last.fsw", base=text.base, name=task, method="t-switch")
    pack([folder / "last.fsw"], folder / "zoo", add=True)
    return Toy(text.base, text.finetuned, folder / "zoo", text.data)


@pytest.mark.parametrize("method", [pytest.param("emr", marks=pytest.mark.deep), "twin"])
def test_a_score_is_that_of_the_restored_models(text: Toy, tmp_path: Path, method: str) -> None:
    toy = sharing(text, tmp_path, method)
    index(toy)
    rows = scores_of(toy, (method, "auto-switch"), ("oracle",))
    record = open_zoo(toy.zoo).record
    assert record.shared is not None
    stored = sum(each.size for each in (*record.tasks.values(), record.shared)) / len(record.tasks)
    assert rows[method].bytes_per_task == pytest.approx(stored)
    (routed,) = (row for name, row in rows.items() if name != method)
    for task in toy.finetuned:
        merge([toy.zoo], tmp_path / task, base=toy.base, task=task)
        inputs, labels = examples_of(toy, task)
        expected = percent(plain_predictions(tmp_path / task, toy.base, inputs), labels)
        assert rows[method].values[task] == pytest.approx(expected)
        assert routed.values[task] == pytest.approx(expected)


@pytest.mark.deep
@pytest.mark.parametrize("method", method_names("shared"))
def test_a_zoo_with_an_artifact_of_its_own_is_indexed_and_routed(
    text: Toy, tmp_path: Path, method: str
) -> None:
    toy = mixed(text, tmp_path, method)
    verify(toy.zoo)
    index(toy)
    (routed,) = scores_of(toy, ("auto-switch",), ("oracle",)).values()
    for task in toy.finetuned:
        merge([toy.zoo], tmp_path / task, base=toy.base, task=task)
        inputs, labels = examples_of(toy, task)
        expected = percent(plain_predictions(tmp_path / task, toy.base, inputs), labels)
        assert routed.values[task] == pytest.approx(expected)


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("make", [sharing, pytest.param(mixed, marks=pytest.mark.deep)])
def test_a_row_is_answered_by_its_mixture(
    text: Toy, tmp_path: Path, make: Callable[[Toy, Path, str], Toy], method: str
) -> None:
    from transformers import BertModel

    toy = make(text, tmp_path, method)
    zoo, module = open_zoo(toy.zoo), BertModel.from_pretrained(toy.base).eval()
    tokens = torch.arange(5, 17).reshape(2, 6)
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.25, 0.5]])
    with torch.no_grad():
        found = SwitchedModel(module, zoo, strict=False)(
            {"input_ids": tokens}, weights=weights
        ).last_hidden_state
    before = load_file(toy.base / "model.safetensors")
    states = [restore(toy.base, zoo[task]) for task in zoo]
    for row, shares in enumerate(weights):
        mixed = {
            name: sum(
                float(share) * state[f"bert.{name}"] for share, state in zip(shares, states, strict=True)
            )
            for name in before
        }
        plain = BertModel.from_pretrained(toy.base).eval()
        plain.load_state_dict(mixed)
        with torch.no_grad():
            expected = plain(input_ids=tokens[row : row + 1]).last_hidden_state
        np.testing.assert_allclose(found[row], expected[0], rtol=2e-3, atol=2e-4)
