"""Heads that differ from row to row: each row is answered by its own task's head."""

import pytest
import torch
from support.checkpoints import compressed, file_pair, memory_pair, message
from support.switching import BATCH, base_classifier
from support.tiny_models import (
    TASKS,
    changed_state,
)
from torch import nn

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.restore import restore


def classifier(text, task):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(text.finetuned[task]).eval()


def restored_logits(text, zoo, task, row):
    module = classifier(text, task)
    state = dict(restore(str(text.base), zoo[task]))
    module.load_state_dict({name: state.get(name, tensor) for name, tensor in module.state_dict().items()})
    with torch.no_grad():
        return module(**{name: tensor[row : row + 1] for name, tensor in BATCH.items()}).logits[0]


@pytest.mark.parametrize("engine", ["fused", "merged", "grouped"])
def test_each_row_is_answered_under_the_head_of_its_largest_weight_or_the_callers(text, engine):
    zoo = open_zoo(text.zoo)
    model = SwitchedModel(base_classifier(text), zoo, engine=engine)
    assert model.tasks == list(TASKS)
    order = [0, 1, 2, 2, 1, 0]
    found = model(BATCH, weights=torch.eye(3)[order]).logits
    widest = max(len(restored_logits(text, zoo, task, 0)) for task in TASKS)
    assert found.shape == (6, widest)
    for row, number in enumerate(order):
        expected = restored_logits(text, zoo, list(TASKS)[number], row)
        torch.testing.assert_close(found[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)
        assert (found[row, len(expected) :] == -torch.inf).all()
    named = model(BATCH, weights=torch.eye(3)[[0] * 6], heads=["birds"] * 6).logits
    assert torch.isfinite(named).sum() == 6 * len(restored_logits(text, zoo, "birds", 0))


def test_heads_are_refused_where_they_are_unknown_too_few_or_not_there(text):
    zoo = open_zoo(text.zoo)
    model, weights = SwitchedModel(base_classifier(text), zoo), torch.eye(3)[[0] * 6]
    assert "heads: no task is named 'bird'" in message(
        InputError, lambda: model(BATCH, weights=weights, heads=["bird"] * 6)
    )
    assert message(InputError, lambda: model(BATCH, weights=weights, heads=["birds"])) == (
        "heads names 1 tasks, expected 6, one for each row"
    )
    assert message(InputError, lambda: model(BATCH, weights=weights, heads="birds")) == (
        "heads is the text 'birds', expected a list with a task's name for each row"
    )
    headless = SwitchedModel(base_classifier(text), zoo, heads=False)
    assert headless(BATCH, weights=weights).logits.shape == (6, 2)
    assert message(InputError, lambda: headless(BATCH, weights=weights, heads=["birds"] * 6)) == (
        "heads= names tasks, but the module has no layer that the tasks have heads for"
    )


def normalised():
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(20, 2)).eval()


@pytest.mark.parametrize("engine", ["fused", "merged", "grouped"])
def test_each_row_has_the_running_statistics_of_its_task_and_no_mixture_of_them(tmp_path, engine):
    module, zoo, restored = normalised(), {}, []
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for number in range(2):
        changed = changed_state({name: each for name, each in state.items() if each.dim()}, 10 + number, 0.1)
        changed["1.running_var"] = torch.rand(4) / 100  # extended by λ = 1.5, it would be negative
        changed["1.num_batches_tracked"] = torch.tensor(7 + number)
        folder = tmp_path / str(number)
        folder.mkdir()
        zoo[f"task{number}"] = compressed(file_pair(folder, state, changed), folder / "task.fsw")
        restored.append(dict(restore(str(folder / "base.safetensors"), zoo[f"task{number}"], 1.5)))
    inputs, weights = torch.randn(4, 3, 5), torch.tensor([[0.0, 1], [1, 0], [0, 0], [0, 1]])
    found = SwitchedModel(module, zoo, engine=engine, lambda_=1.5)(inputs, weights=weights)
    for row, own in enumerate([restored[1], restored[0], state, restored[1]]):
        alone = normalised()
        alone.load_state_dict(own)
        with torch.no_grad():
            torch.testing.assert_close(found[row], alone(inputs[row : row + 1])[0], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_a_head_that_is_not_linear_is_refused():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scale = nn.Linear(3, 3), nn.LayerNorm(3)

        def forward(self, rows):
            return self.scale(self.body(rows))

    module = Scaled()
    base = {name: tensor.detach() for name, tensor in module.body.state_dict(prefix="body.").items()}
    finetuned = changed_state(base, 1) | {"scale.weight": torch.ones(3), "scale.bias": torch.zeros(3)}
    vectors = {"task": memory_pair(base, finetuned)}
    assert message(InputError, lambda: SwitchedModel(module, vectors)) == (
        "finetuned: its own tensor 'scale.bias' belongs to the module's 'scale', a LayerNorm; only linear heads can "
        "differ from row to row: give heads=False"
    )
    assert SwitchedModel(module, vectors, heads=False)(torch.randn(2, 3), weights=torch.ones(2, 1)).shape == (
        2,
        3,
    )
