"""Switched layers under torch.autocast: a row is what its own model, under autocast too, gives for it."""

import copy

import pytest
import torch
from support.checkpoints import compressed, file_pair, memory_pair
from support.switching import BATCH, base_classifier
from support.tiny_models import changed_state
from torch import nn

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.switching.switched_model import ENGINES, SwitchedModel
from flexswitch.merging.task_vectors.restore import restore

ROWS, WIDTH = 5, 12
FORMS = {
    "float32": None,
    "int8": ("t-switch", {"drop": 0.6}),
    "sparse": ("t-switch", {"drop": 0.97}),
}
MIXTURES = {
    "several": torch.tensor([[1.0, 0], [0.6, 0.4], [1, 0], [0, 0], [-0.5, 1]]),
    "one for all rows": torch.tensor([[0.7, 0.3]]).expand(ROWS, 2),
    "none": torch.zeros(ROWS, 2),
}


def conv1d():
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(WIDTH, WIDTH), nn.GELU(), Conv1D(3, WIDTH))


TOKENS = torch.randint(6, (ROWS, 3), generator=torch.Generator().manual_seed(2))
HIDDEN = torch.randn(ROWS, 3, WIDTH, generator=torch.Generator().manual_seed(3))
MODULES = {
    "linear": (lambda: nn.Linear(WIDTH, 3), HIDDEN),
    "two linear layers": (lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)), HIDDEN),
    "norm first": (lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)), HIDDEN),
    "norm last": (lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)), HIDDEN),
    "transformers' Conv1D": (conv1d, HIDDEN),
    "embedding": (lambda: nn.Embedding(6, WIDTH), TOKENS),
    "embedding first": (lambda: nn.Sequential(nn.Embedding(6, WIDTH), nn.Linear(WIDTH, 3)), TOKENS),
    "convolution": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(40, 3)), HIDDEN),
}


def tasks_of(module, folder, form):
    """Returns two task vectors in a form, and the weights that they stand for."""
    base = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    changed = [changed_state(base, number, 0.3) for number in range(2)]
    if FORMS[form] is None:
        return {f"task{number}": memory_pair(base, state) for number, state in enumerate(changed)}, changed
    method, settings = FORMS[form]
    vectors = {
        f"task{number}": compressed(
            file_pair(folder, base, state), folder / f"{number}.fsw", method, **settings
        )
        for number, state in enumerate(changed)
    }
    restored = [dict(restore(str(folder / "base.safetensors"), each)) for each in vectors.values()]
    return vectors, restored


def alone(module, states, shares, inputs, dtype):
    """Returns the answer of a module that holds one row's weights."""
    own = copy.deepcopy(module)
    base = module.state_dict()
    mixed = {
        name: tensor
        + sum(share * (state[name] - tensor) for share, state in zip(shares.tolist(), states, strict=True))
        for name, tensor in base.items()
    }
    own.load_state_dict(mixed)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        return own(inputs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MODULES)
def test_each_row_is_what_its_own_model_gives_under_autocast(tmp_path, kind, form):
    torch.manual_seed(1)
    make, inputs = MODULES[kind]
    module = make().eval()
    vectors, states = tasks_of(module, tmp_path, form)
    for engine in ENGINES:
        model = SwitchedModel(module, vectors, engine=engine)
        for weights in MIXTURES.values():
            with torch.autocast("cpu", torch.bfloat16):
                found = model(inputs, weights=weights)
            for row in range(ROWS):
                expected = alone(module, states, weights[row], inputs[row : row + 1], torch.bfloat16)[0]
                assert found.dtype == expected.dtype
                torch.testing.assert_close(found[row], expected, rtol=0.02, atol=0.04)


def test_float16_is_another_type_that_products_may_have(tmp_path):
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)).eval()
    vectors, states = tasks_of(module, tmp_path, "float32")
    weights = MIXTURES["several"]
    with torch.autocast("cpu", torch.float16):
        found = SwitchedModel(module, vectors, engine="fused")(HIDDEN, weights=weights)
    for row in range(ROWS):
        expected = alone(module, states, weights[row], HIDDEN[row : row + 1], torch.float16)[0]
        torch.testing.assert_close(found[row], expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_padded_texts_have_their_tasks_heads_in_the_type_of_the_products(text, engine):
    model = SwitchedModel(base_classifier(text), open_zoo(text.zoo), engine=engine)
    mask = torch.ones_like(BATCH["attention_mask"])
    mask[::2, 3:] = 0
    batch, weights = {**BATCH, "attention_mask": mask}, torch.eye(3)[[0, 1, 2, 2, 1, 0]]
    expected = model(batch, weights=weights).logits
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch, weights=weights).logits
        one = model({name: tensor[:1] for name, tensor in batch.items()}, weights=weights[:1]).logits
    assert found.dtype == one.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.2)  # bfloat16 in all layers


def test_rows_of_rounded_products_are_recognised_as_rows():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(WIDTH, 64), nn.Softmax(-1), nn.Linear(64, 3)).eval()
    base = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    model = SwitchedModel(module, {"task": memory_pair(base, changed_state(base, 1, 0.3))}, engine="fused")
    with torch.autocast("cpu", torch.bfloat16):
        assert model(1e3 * HIDDEN, weights=torch.ones(ROWS, 1)).isfinite().all()
