"""A layer whose weights are used otherwise than on a batch's rows is switched too, by the grouped engine."""

import copy

import pytest
import torch
from support.checkpoints import memory_pair, message
from support.tiny_models import changed_state
from torch import Tensor, nn

from flexswitch.codecs.errors import NotByRowsError
from flexswitch.merging.switching.switched_model import SwitchedModel


class Queries(nn.Module):
    """Adds the first row of a table, which it reads without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.line = nn.Embedding(3, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.line(inputs + self.table.weight[0])
        return out


class Offset(nn.Module):
    """Returns its own vector."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(4))

    def forward(self) -> Tensor:
        return self.vector


class Shifted(nn.Module):
    """Adds what a layer returns that is given nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.line = Offset(), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.line(inputs + self.offset())
        return out


class Spare(nn.Module):
    """Has a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.line = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.line(inputs)
        return out


@pytest.mark.parametrize("kind", [Queries, Shifted])
def test_weights_that_are_used_without_the_rows_of_a_batch_are_switched(
    kind: type[nn.Module],
) -> None:
    torch.manual_seed(0)
    module, inputs = kind(), torch.randn(4, 4)
    base = module.state_dict()
    states = {f"task{number}": changed_state(base, number, 0.5) for number in range(2)}
    vectors = {task: memory_pair(base, state) for task, state in states.items()}
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    found = SwitchedModel(module, vectors)(inputs, weights=weights)
    for row in range(4):
        alone = copy.deepcopy(module)
        alone.load_state_dict(states[f"task{row % 2}"])
        torch.testing.assert_close(found[row], alone(inputs[row : row + 1]).detach()[0], rtol=1e-4, atol=1e-5)
    fused = SwitchedModel(module, vectors, engine="fused")
    assert "use engine='grouped'" in message(NotByRowsError, lambda: fused(inputs, weights=weights))


def test_a_layer_that_is_not_used_at_all_leaves_the_fused_engine() -> None:
    torch.manual_seed(0)
    module = Spare()
    base = module.state_dict()
    vectors = {f"task{number}": memory_pair(base, changed_state(base, number, 0.5)) for number in range(2)}
    inputs = torch.randn(2, 4)
    SwitchedModel(module, vectors, engine="fused")(inputs, weights=torch.eye(2))
