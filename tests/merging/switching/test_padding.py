"""The row contract on padded batches, over random modules: a row's real tokens are what it has alone."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from support import laws
from support.checkpoints import memory_pair
from support.tiny_models import changed_state
from torch import nn
from torch.nn import functional

from flexswitch.merging.switching.switched_model import SwitchedModel

VOCABULARY, WIDTH, ROWS, LENGTH, TASKS = 7, 4, 4, 5, 2


def attend(hidden, mask):
    """Returns the mean of a row's real tokens by their products, (row, token, width)."""
    heads = hidden.view(*hidden.shape[:2], 2, -1).transpose(1, 2)
    scores = heads @ heads.transpose(2, 3) / math.sqrt(heads.shape[-1])
    scores = scores.masked_fill(mask[:, None, None] == 0, -1e9)
    return (scores.softmax(-1) @ heads).transpose(1, 2).reshape(hidden.shape)


def shifted(hidden):
    """Changes a copy in place, as a whole and through a view."""
    hidden = hidden.clone()
    hidden += 0.5
    hidden[:, :, 0] = 0.25
    return hidden.mul_(0.5)


def turned(hidden):
    first, second = hidden.chunk(2, -1)
    return torch.cat([second, first], -1)


def with_mean(hidden, mask):
    real = mask[:, :, None].to(hidden.dtype)
    return hidden + (hidden * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)


STEPS = {
    "linear": lambda net, hidden, mask: net.linear(hidden),
    "again": lambda net, hidden, mask: net.linear(hidden) + net.other(hidden),
    "norm": lambda net, hidden, mask: net.norm(hidden),
    "gate": lambda net, hidden, mask: hidden + net.other(hidden) * torch.sigmoid(net.linear(hidden)),
    "activation": lambda net, hidden, mask: functional.gelu(hidden),
    "condition": lambda net, hidden, mask: torch.where(hidden > 0, hidden, 0.1 * hidden),
    "positions": lambda net, hidden, mask: hidden + net.positions.to(hidden.dtype),
    "plain layer": lambda net, hidden, mask: functional.linear(hidden, net.plain.to(hidden.dtype)),
    "attention": lambda net, hidden, mask: hidden + attend(hidden, mask),
    "in place": lambda net, hidden, mask: shifted(hidden),
    "halves": lambda net, hidden, mask: turned(hidden),
    "mean": lambda net, hidden, mask: with_mean(hidden, mask),
}


class RandomNet(nn.Module):
    """Embeds and takes steps; what is no parameter belongs to no task."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.linear, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm = nn.LayerNorm(WIDTH)
        generator = torch.Generator().manual_seed(1)
        self.positions = torch.randn(LENGTH, WIDTH, generator=generator)
        self.plain = torch.randn(WIDTH, WIDTH, generator=generator)

    def forward(self, tokens, attention_mask):
        hidden = self.table(tokens)
        for step in self.steps:
            hidden = STEPS[step](self, hidden, attention_mask)
        return hidden


def alone(net, base, states, shares, tokens, mask):
    """Returns one row's answer under θ + Σ w_k τ_k, by float64."""
    mixed = {name: tensor.double() for name, tensor in base.items()}
    for share, state in zip(shares.tolist(), states, strict=True):
        mixed = {name: mixed[name] + share * (state[name].double() - base[name].double()) for name in mixed}
    own = RandomNet(net.steps).double()
    own.load_state_dict(mixed)
    with torch.no_grad():
        return own(tokens[None], mask[None])[0]


@st.composite
def cases(draw):
    tokens = st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH)
    marks = draw(st.lists(tokens, min_size=ROWS, max_size=ROWS))
    share = st.sampled_from([0.0, 1.0, 0.25, -0.5])
    weights = draw(st.lists(st.tuples(*[share] * TASKS), min_size=ROWS, max_size=ROWS))
    steps = draw(st.lists(st.sampled_from(sorted(STEPS)), max_size=6))
    return steps, torch.tensor(marks).long(), torch.tensor(weights), draw(st.integers(0, 100))


@laws.settings(60, deadline=None)
@given(case=cases(), engine=st.sampled_from(["fused", "merged", "grouped"]))
def test_a_rows_real_tokens_are_those_it_has_alone(case, engine):
    steps, mask, weights, seed = case
    torch.manual_seed(seed)
    net = RandomNet(steps)
    base = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    states = [changed_state(base, number, 0.5) for number in range(TASKS)]
    vectors = {f"task{number}": memory_pair(base, state) for number, state in enumerate(states)}
    model = SwitchedModel(net, vectors, engine=engine)
    tokens = torch.randint(VOCABULARY, mask.shape)
    found = model({"tokens": tokens, "attention_mask": mask}, weights=weights)
    assert type(found) is torch.Tensor
    for row in range(ROWS):
        expected = alone(net, base, states, weights[row], tokens[row], mask[row])
        real = mask[row] == 1
        torch.testing.assert_close(found[row, real].double(), expected[real], rtol=1e-3, atol=1e-4)
