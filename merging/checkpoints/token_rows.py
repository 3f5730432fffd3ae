"""Which rows of several models make the rows of a vocabulary that they share; tokens are matched by text.

Source: mergekit 0.1.5, tokenizer/embed.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError

LACKING = -1

Place = tuple[int, int]  # a model's number, and a row of its tensor


@dataclass(frozen=True)
class OtherRow:
    """The row of one token for the models that lack it, and with `force` for all.

    model: the number of the model whose row it is, None for zeros. token: there, by its text or its number;
    None for the same one.
    """

    model: int | None
    token: str | int | None = None
    force: bool = False


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The rows of a common vocabulary, for every model.

    own: int64 (model, row), the row of its own tensor that a model has for a token, LACKING where it gets the
    other one. others: row → the places whose mean that is; zeros of no place, and of a row without an entry.
    tokens: the number of rows up to the last token; the rows behind them are the mean of these.
    """

    own: NDArray[np.int64]
    others: Mapping[int, Sequence[Place]]
    tokens: int

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.own[0])

    def rows_read(self, model: int) -> int:
        """Returns how many rows of a model's tensor there must be."""
        places = [row for each in self.others.values() for number, row in each if number == model]
        return max([int(self.own[model].max()), *places]) + 1


def token_rows(
    vocabulary: Mapping[str, int],
    held: Sequence[Mapping[str, int] | None],
    base: int | None,
    chosen: Mapping[str, OtherRow],
    multiple: int = 1,
) -> TokenRows:
    """Returns the rows of a vocabulary, token → row.

    held: for each model its tokens with their rows, None of one without such a tensor. base: the model whose
    row others get for a token that they lack; without it, or where it lacks the token too, they get the mean
    of the rows that there are, and zeros of none. chosen: another rule for some tokens. multiple: of which
    the number of rows is one. Raises: InputError naming a token whose row is to be of a model that lacks it.
    """
    tokens = max(vocabulary.values()) + 1
    own = np.full((len(held), -(-tokens // multiple) * multiple), LACKING, np.int64)
    others: dict[int, list[Place]] = {}
    for token, row in vocabulary.items():
        has = [model for model, rows in enumerate(held) if rows is not None and token in rows]
        choice = chosen.get(token)
        is_forced = choice is not None and choice.force
        if not is_forced:
            own[has, row] = [_rows(held, model)[token] for model in has]
            if len(has) == sum(rows is not None for rows in held):
                continue
        if choice is not None:
            others[row] = list(_place(token, choice, held))
        elif base in has:
            others[row] = [(model, _rows(held, model)[token]) for model in has if model == base]
        else:
            others[row] = [(model, _rows(held, model)[token]) for model in has]
    return TokenRows(own, others, tokens)


def _place(token: str, choice: OtherRow, held: Sequence[Mapping[str, int] | None]) -> Iterator[Place]:
    if choice.model is None:
        return
    wanted = token if choice.token is None else choice.token
    rows = _rows(held, choice.model)
    row = wanted if isinstance(wanted, int) else rows.get(wanted)
    if row is None or row < 0:
        raise InputError(f"the row of the token {token!r} is to be that of {wanted!r}, which the model lacks")
    yield choice.model, row


def _rows(held: Sequence[Mapping[str, int] | None], model: int) -> Mapping[str, int]:
    found = held[model]
    return {} if found is None else found
