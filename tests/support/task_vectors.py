"""A base and its fine-tune with tensors of every kind, for the tests of task vectors."""

import torch
from support.checkpoints import State

BASE: State = {
    "counter": torch.tensor(1),
    "empty.weight": torch.empty(0, 3),
    "w.bias": torch.tensor([1e9, 2.0, 3.0]),
    "w.weight": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16),
}
FINETUNED: State = {
    "counter": torch.tensor(2),
    "empty.weight": torch.empty(0, 3),
    "head.mask": torch.tensor([True, False, True]),
    "head.weight": torch.tensor([0.5, 1.5, 2.5], dtype=torch.float16),
    "w.bias": torch.tensor([1.1, 2.1, 3.1]),
    "w.weight": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16) * 1.5,
}
