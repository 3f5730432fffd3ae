"""Modules that do what a list of their layers does not tell, each named by what that is."""

from typing import Any

import torch
from torch import Tensor, nn


class EncoderLayer(nn.Module):
    """Is computed by torch in one piece, without a call of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.layer(rows)
        return found


class ReadTable(nn.Module):
    """Reads a row of a table that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.line = nn.Embedding(3, 8), nn.Linear(8, 2)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.line(rows + self.table.weight[0])
        return found


class Offset(nn.Module):
    """Returns its own vector."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(8))

    def forward(self) -> Tensor:
        return self.vector


class Shifted(nn.Module):
    """Adds what a layer returns that is given nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.line = Offset(), nn.Linear(8, 2)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.line(rows + self.offset())
        return found


class TiedOutput(nn.Module):
    """Calls a layer, and multiplies by its weight elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 8)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.line(rows) @ self.line.weight
        return found


class TokensFirst(nn.Module):
    """Puts tokens before rows."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.line(rows.transpose(0, 1)).transpose(0, 1)
        return found


class Experts(nn.Module):
    """Gives each of two layers the tokens that belong to it, whatever row they are of."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

    def forward(self, rows: Tensor) -> Tensor:
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            own = (rows[..., 0] > 0) == bool(number)
            out[own] = expert(rows[own])
        return out


class Positions(nn.Module):
    """Adds an embedding of each token's place, which is given no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = rows + self.table(torch.arange(rows.shape[1])[None])[0]
        return found


class ScaledHead(nn.Module):
    """Has a parameter of its own beside a layer that tasks replace, and a norm with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.norm, self.line = nn.Parameter(torch.ones(8)), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.line(self.norm((rows * self.scale)[:, 0]))
        return found


class Temperature(nn.Module):
    """Multiplies by one number."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.temperature = nn.Linear(8, 3), nn.Parameter(torch.tensor(1.5))

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.line(rows) * self.temperature
        return found


class InPlace(nn.Module):
    """Changes what it is given, and has a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.line = nn.Linear(2, 2), nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.line(rows.mul_(0.5))
        return found


class Recurrence(nn.Module):
    """Returns the outputs of an LSTM by its defaults, whose state has its rows in the second place."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.line = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.line(self.cells(rows)[0])
        return found


class GivenState(Recurrence):
    """Gives it a first state."""

    def forward(self, rows: Tensor) -> Tensor:
        state = torch.ones(1, len(rows), 4)
        found: Tensor = self.line(self.cells(rows, (state, state))[0])
        return found


class ClassesFirst(nn.Module):
    """Returns the classes before the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 7)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.line(rows[:, 0]).T
        return found


class Computed(nn.Module):
    """Computes a layer's weight before each call, as weight_norm does, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.size = nn.Linear(8, 3), nn.Parameter(torch.ones(3, 1))
        self.kept = self.size * self.line.weight

    def forward(self, rows: Tensor) -> Tensor:
        self.kept = self.size * self.line.weight
        return nn.functional.linear(rows, self.kept, self.line.bias)


class MeanOfTokens(nn.Module):
    """Reads the padding of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.line = nn.Embedding(32, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.line(self.table(input_ids)).mean(1)


class Slots(nn.Module):
    """Answers by six slots that attend to the tokens, whose number is another."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.line = nn.Embedding(32, 6), nn.Linear(6, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.table(input_ids)
        scores = torch.eye(6).expand(len(tokens), 6, 6) @ tokens.transpose(1, 2)
        slots = scores.masked_fill(attention_mask[:, None] == 0, -1e9).softmax(-1) @ tokens
        found: Tensor = self.line(slots).sum(1)
        return found
