"""A module under three tasks, and what it answers with the mixed weights of a row."""

import torch
from support.checkpoints import memory_pair
from support.tiny_models import changed_state

from flexswitch.merging.switching.switched_model import SwitchedModel

ROWS, TASKS = 5, 3


def switched(module, engine="fused", size=0.3):
    """Returns the module wrapped with three tasks that change all of its weights, and their states."""
    state = module.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in state.items() if tensor.is_floating_point()}  # tied: once
    base = {name: state[name].detach() for name in names.values()}
    states = [changed_state(base, 10 + number, size) for number in range(TASKS)]
    vectors = {f"task{number}": memory_pair(base, state) for number, state in enumerate(states)}
    return SwitchedModel(module.eval(), vectors, engine=engine), base, states


def weights_of(rows=ROWS):
    weights = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.4], [1, 0, 0], [0, 0, 0], [0.2, 0.3, 0.5]])
    return weights[torch.arange(rows) % len(weights)]


def mixed_answer(module, base, states, row, call):
    """Returns the result of a call of the module with one row's mixed weights, and its task's buffers."""
    own = {
        name: tensor
        + sum(share * (state[name] - tensor) for share, state in zip(row.tolist(), states, strict=True))
        for name, tensor in base.items()
    }
    if row.any():
        alone = {*dict(module.named_buffers()), *(name for name, tensor in base.items() if not tensor.dim())}
        own |= {name: states[int(row.argmax())][name] for name in alone & base.keys()}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(own, strict=False)
    with torch.no_grad():
        found = call(module)
    module.load_state_dict(before)
    return found
