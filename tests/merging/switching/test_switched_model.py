"""The row contract of SwitchedModel: each row is answered by its own mixture, whoever stands beside it."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import laws
from support.checkpoints import compressed, file_pair, memory_pair, message
from support.tiny_models import changed_state
from torch import nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.switching.switched_model import ENGINES, SwitchedModel
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.task_vector import delta_tensor

VOCABULARY, HIDDEN, OUT = 7, 5, 3


class TinyNet(nn.Module):
    """Embedding, linear, layernorm, linear; every row by itself. tokens: (row, token)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, HIDDEN)
        self.hidden = nn.Linear(HIDDEN, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.out = nn.Linear(HIDDEN, OUT)
        self.register_buffer("steps", torch.arange(4))

    def forward(self, tokens, gain=None):
        hidden = torch.tanh(self.hidden(self.table(tokens))).mean(1)
        if gain is not None:
            hidden = hidden * gain
        return self.out(self.norm(hidden))


def make_net(seed, dtype=torch.float32):
    torch.manual_seed(seed)
    return TinyNet().to(dtype)


def make_tasks(net, count, size=0.5):
    """Returns each task's fine-tuned state, and its task vector."""
    base = net.state_dict()
    states = {f"task{number}": changed_state(base, 100 + number, size) for number in range(count)}
    return states, {task: memory_pair(base, state) for task, state in states.items()}


def plain_row(net, states, lambda_, shares, **inputs):
    """Returns the answer to one row under θ + λ Σ w_k τ_k, by float64 arithmetic on state dicts."""
    base = {name: tensor.double() for name, tensor in net.state_dict().items()}
    mixed = dict(base)
    for share, state in zip(shares.tolist(), states.values(), strict=True):
        for name in mixed:
            mixed[name] = mixed[name] + lambda_ * share * (state[name].double() - base[name])
    alone = TinyNet().double()
    alone.load_state_dict(mixed)
    with torch.no_grad():
        return alone(**{name: value[None] for name, value in inputs.items()})[0]


def assert_row_contract(net, states, found, weights, lambda_=1.0, atol=1e-4, **inputs):
    assert len(found) == len(weights)
    for row in range(len(weights)):
        own = {name: value[row] for name, value in inputs.items()}
        expected = plain_row(net, states, lambda_, weights[row], **own)
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=atol)


def tokens_for(seed, rows, length=4):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


SHARE = st.one_of(st.sampled_from([0.0, 1.0, 0.2, 0.4]), st.floats(-1, 1, width=32))


@st.composite
def cases(draw):
    tasks, rows = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    share_row = st.lists(SHARE, min_size=tasks, max_size=tasks)
    some = draw(st.lists(share_row, min_size=1, max_size=3))  # rows draw from these, so that some are equal
    picked = [draw(st.sampled_from(some)) for _ in range(rows)]
    seed, lambda_ = draw(st.integers(0, 1000)), draw(st.sampled_from([1.0, 0.3, -0.5]))
    engine = draw(st.sampled_from(ENGINES))
    return (
        seed,
        torch.tensor(picked),
        lambda_,
        draw(st.booleans()),
        draw(st.permutations(range(rows))),
        engine,
    )


@laws.settings(60, deadline=None)
@given(case=cases())
def test_each_row_is_answered_under_its_own_weights_whatever_else_is_in_the_batch(case):
    seed, weights, lambda_, as_dict, order, engine = case
    net = make_net(seed)
    states, vectors = make_tasks(net, weights.shape[1])
    model = SwitchedModel(net, vectors, lambda_=lambda_, engine=engine)
    inputs = {"tokens": tokens_for(seed, len(weights))}
    if as_dict:
        inputs["gain"] = torch.linspace(0.5, 2, len(weights))[:, None].expand(-1, HIDDEN)

    def answer(rows):
        batch = {name: value[rows] for name, value in inputs.items()}
        with torch.no_grad():
            return model(batch if as_dict else batch["tokens"], weights=weights[rows])

    together = answer(list(range(len(weights))))
    assert together.dtype == torch.float32
    assert_row_contract(net, states, together, weights, lambda_, **inputs)
    torch.testing.assert_close(answer(order), together[order], rtol=1e-5, atol=1e-5)
    for row in range(len(weights)):
        torch.testing.assert_close(answer([row])[0], together[row], rtol=1e-5, atol=1e-5)


METHODS = st.sampled_from(
    [
        ("t-switch", {"drop": 0.6}),
        ("t-switch", {"drop": 0.97}),
        ("tvq", {"bits": 3}),
        ("p-discard", {"drop": 0.9}),
    ]
)


@laws.settings(25, deadline=None)
@given(case=cases(), method=METHODS, size=st.sampled_from([0.02, 0.5]))
def test_compressed_tasks_answer_as_what_they_are_restored_to(tmp_path_factory, case, method, size):
    seed, weights, lambda_, _, order, engine = case
    net, folder = make_net(seed), tmp_path_factory.mktemp("law")
    states, artifacts = {}, {}
    for number in range(weights.shape[1]):
        pair = file_pair(folder, net.state_dict(), changed_state(net.state_dict(), number, size))
        artifact = compressed(pair, folder / f"task{number}.fsw", method[0], **method[1])
        artifacts[f"task{number}"] = artifact
        states[f"task{number}"] = dict(restore(str(folder / "base.safetensors"), artifact))
    model, tokens = (
        SwitchedModel(net, artifacts, lambda_=lambda_, engine=engine),
        tokens_for(seed, len(weights)),
    )
    found = model(tokens, weights=weights)
    assert_row_contract(net, states, found, weights, lambda_, tokens=tokens)
    torch.testing.assert_close(
        model(tokens[order], weights=weights[order]), found[order], rtol=1e-5, atol=1e-5
    )


def test_the_wrapped_module_keeps_its_weights_and_answers_as_before():
    net = make_net(0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    _, vectors = make_tasks(net, 3)
    tokens = tokens_for(0, 5)
    expected = net(tokens)
    SwitchedModel(net, vectors)(tokens, weights=torch.rand(5, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(net(tokens), expected)


def test_weights_of_zero_are_the_base():
    net = make_net(0)
    _, vectors = make_tasks(net, 2)
    tokens = tokens_for(0, 5)
    torch.testing.assert_close(SwitchedModel(net, vectors)(tokens, weights=torch.zeros(5, 2)), net(tokens))


def test_an_empty_batch_has_an_empty_answer():
    net = make_net(0)
    _, vectors = make_tasks(net, 2)
    found = SwitchedModel(net, vectors)(torch.zeros(0, 4, dtype=torch.long), weights=torch.zeros(0, 2))
    assert found.shape == (0, OUT)


def test_the_router_is_asked_for_the_whole_batch_and_weights_override_it():
    net = make_net(0)
    states, vectors = make_tasks(net, 2)
    asked = []

    def route(batch):
        asked.append(batch)
        return torch.eye(2)[batch[:, 0] % 2]

    model, tokens = SwitchedModel(net, vectors, router=route), tokens_for(1, 6)
    assert model.tasks == ["task0", "task1"]
    assert_row_contract(net, states, model(tokens), torch.eye(2)[tokens[:, 0] % 2], tokens=tokens)
    assert asked == [tokens]
    given_weights = torch.rand(6, 2)
    assert_row_contract(net, states, model(tokens, weights=given_weights), given_weights, tokens=tokens)
    assert len(asked) == 1


def test_without_router_and_weights_nothing_is_answered():
    net = make_net(0)
    model = SwitchedModel(net, make_tasks(net, 2)[1])
    assert message(InputError, lambda: model(tokens_for(0, 2))) == (
        "there are no weights: give weights= or a router, or wrap the module with a zoo that has an index (`flexswitch index`)"
    )


@pytest.mark.parametrize("shape", [[3, 2], [1, 2], [2, 3], [2], [2, 1]])
def test_weights_of_another_shape_are_refused(shape):
    net = make_net(0)
    model = SwitchedModel(net, make_tasks(net, 2)[1])
    expected = f"the weights have the shape {shape}, expected (row, task) = [2, 2]"
    tokens = tokens_for(0, 2)
    assert message(InputError, lambda: model(tokens, weights=torch.zeros(shape))) == expected
    assert message(InputError, lambda: model({"tokens": tokens}, weights=torch.zeros(shape))) == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(value):
    net = make_net(0)
    weights = torch.tensor([[1.0, 0.0], [0.0, value]])
    assert message(
        InputError, lambda: SwitchedModel(net, make_tasks(net, 2)[1])(tokens_for(0, 2), weights=weights)
    ) == ("the weights hold a number that is not finite")


def test_a_module_without_a_parameter_that_the_tasks_change_is_refused():
    _, vectors = make_tasks(make_net(0), 2)
    net = make_net(0)
    del net.norm
    assert message(InputError, lambda: SwitchedModel(net, vectors)) == (
        "the module has no parameter 'norm.bias', which the zoo's tasks change"
    )


def test_a_module_with_a_parameter_of_another_shape_is_refused():
    _, vectors = make_tasks(make_net(0), 2)
    net = make_net(0)
    net.table = nn.Embedding(VOCABULARY + 1, HIDDEN)
    assert message(InputError, lambda: SwitchedModel(net, vectors)) == (
        "the module's parameter 'table.weight' has the shape [8, 5], the zoo's tasks change one of shape [7, 5]"
    )


def test_names_may_carry_a_prefix_on_either_side():
    net = make_net(0)
    states, vectors = make_tasks(net, 2)
    weights, tokens = torch.rand(4, 2), tokens_for(0, 4)
    outer = nn.Sequential(OrderedDict(inner=net))
    assert_row_contract(
        net, states, SwitchedModel(outer, vectors)(tokens, weights=weights), weights, tokens=tokens
    )
    longer = {
        task: memory_pair(
            {f"model.{name}": tensor for name, tensor in net.state_dict().items()},
            {f"model.{name}": tensor for name, tensor in state.items()},
        )
        for task, state in states.items()
    }
    assert_row_contract(
        net, states, SwitchedModel(net, longer)(tokens, weights=weights), weights, tokens=tokens
    )


class TiedNet(nn.Module):
    """Two names for one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(4, 4, bias=False)
        self.outward = nn.Linear(4, 4, bias=False)
        self.outward.weight = self.inward.weight

    def forward(self, rows):
        return self.outward(torch.relu(self.inward(rows)))


@pytest.mark.parametrize("stored", ["inward.weight", "outward.weight"])
def test_a_tied_tensor_changes_under_both_its_names(stored):
    torch.manual_seed(0)
    net = TiedNet()
    base = {stored: net.inward.weight.detach()}
    finetuned = changed_state(base, 1)
    rows = torch.randn(3, 4)
    found = SwitchedModel(net, {"task": memory_pair(base, finetuned)})(rows, weights=torch.ones(3, 1))
    weight = finetuned[stored]
    torch.testing.assert_close(found, torch.relu(rows @ weight.T) @ weight.T)


def test_one_task_of_weight_one_answers_as_the_restored_model(tmp_path):
    net = make_net(3)
    base = net.state_dict()
    artifact = compressed(file_pair(tmp_path, base, changed_state(base, 1, 0.5)), tmp_path / "task.fsw")
    other = memory_pair(base, changed_state(base, 2, 0.5))
    model = SwitchedModel(net, {"task": artifact, "other": other}, lambda_=0.8)
    tokens = tokens_for(0, 6)
    found = model(tokens, weights=torch.tensor([[1.0, 0.0]] * 6))
    restored = TinyNet()
    restored.load_state_dict(dict(restore(str(tmp_path / "base.safetensors"), artifact, lambda_=0.8)))
    torch.testing.assert_close(found, restored(tokens), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("engine", ["fused", "merged", "grouped"])
def test_a_half_precision_module_answers_in_its_own_type(dtype, atol, engine):
    net = make_net(0, dtype)
    states, vectors = make_tasks(net, 3)
    weights, tokens = torch.rand(5, 3), tokens_for(0, 5)
    model = SwitchedModel(net, vectors, engine=engine)
    found = model(tokens, weights=weights)
    assert found.dtype == dtype
    assert_row_contract(net, states, found, weights, atol=atol, tokens=tokens)
    wide = net.state_dict()
    for share, vector in zip(weights[0].tolist(), vectors.values(), strict=True):
        wide = {
            name: tensor.float() + share * delta_tensor(vector, name) if name in vector.tensors else tensor
            for name, tensor in wide.items()
        }
    alone = TinyNet().to(dtype)
    alone.load_state_dict({name: tensor.to(net.state_dict()[name].dtype) for name, tensor in wide.items()})
    torch.testing.assert_close(found[0], alone(tokens[:1])[0], rtol=0, atol=atol)


@pytest.mark.parametrize("engine", ["fused", "grouped"])
def test_a_tiny_cache_gives_the_same_answers(engine):
    net = make_net(0)
    states, vectors = make_tasks(net, 4)
    weights, tokens = torch.rand(6, 4).round(decimals=1), tokens_for(0, 6)
    expected = SwitchedModel(net, vectors, engine=engine)(tokens, weights=weights)
    tight = SwitchedModel(net, vectors, engine=engine, cache_bytes=1)
    assert torch.equal(tight(tokens, weights=weights), expected)
    assert torch.equal(tight(tokens, weights=weights), expected)
    assert len(tight._loaded.deltas._kept) == 1
    assert tight.cached_bytes == tight._loaded.deltas.nbytes > 0
    assert_row_contract(net, states, expected, weights, tokens=tokens)
