"""A base of three tensors, fine-tunes of it, and refusals of pairs, for the tests of pairing."""

from typing import Any

import torch
from support.checkpoints import State, memory_pair, message

from flexswitch.codecs.errors import InputError

BASE: State = {
    "encoder.bias": torch.tensor([1.0, 2.0]),
    "encoder.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "words.weight": torch.arange(6.0).reshape(3, 2),
}


def tuned(state: State = BASE, prefix: str = "") -> State:
    return {prefix + name: tensor + 0.5 for name, tensor in state.items()}


def refused(base: State, finetuned: State, **selection: Any) -> str:
    return message(InputError, lambda: memory_pair(base, finetuned, **selection))
