"""Rows of a common vocabulary: which they are, and that any range of them is read alike."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import message

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES
from flexswitch.merging.checkpoints.token_rows import LACKING, OtherRow, token_rows
from flexswitch.merging.checkpoints.vocabulary_checkpoint import VocabularyCheckpoint, VocabularyTensors

WORDS = {"a": 0, "b": 1, "c": 2, "d": 3}
HELD: list[dict[str, int] | None] = [{"a": 2, "b": 0}, {"b": 1, "c": 0, "a": 3}, None]


class State:
    """A checkpoint in memory."""

    directory = hub_id = None

    def __init__(self, source: str, **tensors: torch.Tensor) -> None:
        self.source, self.aliases, self._state = source, dict[str, str](), tensors
        self.files: list[Any] = []
        self.notes: list[str] = []
        self.tensors = {
            name: TensorInfo(DTYPE_NAMES[each.dtype], tuple(each.shape)) for name, each in tensors.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self._state[name].reshape(-1)[start:stop].clone()

    def read_ahead(self, name: str) -> None: ...


def numbered(rows: int, first: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns a matrix of three columns whose rows are `first`, `first` + 1 and so on."""
    return (first + torch.arange(rows))[:, None].expand(rows, 3).to(dtype).contiguous()


@pytest.mark.parametrize(
    ("base", "expected"),
    [(0, {2: [(1, 0)], 3: []}), (1, {2: [(1, 0)], 3: []}), (None, {2: [(1, 0)], 3: []})],
)
def test_a_token_that_one_model_has_is_its_row_for_all(base: int | None, expected: dict[int, Any]) -> None:
    found = token_rows(WORDS, HELD, base, {})
    assert {row: list(places) for row, places in found.others.items()} == expected
    assert found.own.tolist() == [[2, 0, -1, -1], [3, 1, 0, -1], [-1, -1, -1, -1]]


def test_lacking_rows_are_the_base_s_or_else_the_mean() -> None:
    held = [*HELD[:2], {"b": 5, "c": 6}]
    assert token_rows(WORDS, held, 1, {}).others[0] == [(1, 3)]
    assert token_rows(WORDS, held, 2, {}).others[0] == [(0, 2), (1, 3)]
    assert token_rows(WORDS, held, None, {}).others[0] == [(0, 2), (1, 3)]


def test_a_rule_counts_for_all_models_only_where_it_is_forced() -> None:
    rules = {"a": OtherRow(1, "b"), "b": OtherRow(None, force=True), "d": OtherRow(0, 7)}
    found = token_rows(WORDS, HELD, 0, rules, multiple=8)
    assert found.own.tolist() == [[2] + [LACKING] * 7, [3, LACKING, 0] + [LACKING] * 5, [LACKING] * 8]
    assert (found.tokens, found.others[1], found.others[3]) == (4, [], [(0, 7)])
    assert [found.rows_read(model) for model in range(3)] == [8, 4, 0]


def test_a_rule_names_a_row_that_there_is() -> None:
    assert message(InputError, lambda: token_rows(WORDS, HELD, 0, {"d": OtherRow(1)})) == (
        "the row of the token 'd' is to be that of 'd', which the model lacks"
    )


@given(start=st.integers(0, 30), stop=st.integers(0, 30))
def test_any_range_is_that_of_the_whole(start: int, stop: int) -> None:
    models = [
        VocabularyTensors(State("one", w=numbered(3, 10), bias=torch.arange(3.0)), {"w": "embedding", "bias": "head bias"}, {}),
        VocabularyTensors(State("two", v=numbered(4, 20, torch.float64)), {"v": "embedding"}, {}),
        VocabularyTensors(State("three", x=torch.ones(1)), {}, {}),
    ]  # fmt: skip
    rows = {
        "embedding": token_rows(WORDS, HELD, 0, {}, 10),
        "head bias": token_rows(WORDS, [HELD[0], None, None], 0, {}, 10),
    }
    found = VocabularyCheckpoint(models, 0, rows, None)
    whole = found.read("w")
    assert whole.dtype == torch.float64  # holds the values of both
    lines = whole.reshape(10, 3)
    assert lines[:, 0].tolist() == [12, 10, 20, 0] + [10.5] * 6
    assert found.read("bias").tolist() == [2, 0, 0, 0] + [0.5] * 6
    assert found.read("w", start, stop).tolist() == whole[start:stop].tolist()
    assert VocabularyCheckpoint(models, 0, rows, torch.float32).tensors["w"] == TensorInfo("F32", (10, 3))


def test_rows_of_another_width_are_refused() -> None:
    models = [
        VocabularyTensors(State("one", w=numbered(3, 10)), {"w": "embedding"}, {}),
        VocabularyTensors(State("two", w=torch.ones(4, 2)), {"w": "embedding"}, {}),
    ]
    rows = {"embedding": token_rows(WORDS, HELD[:2], 0, {})}
    assert message(InputError, lambda: VocabularyCheckpoint(models, 0, rows, None)) == (
        "two: tensor 'w' has the shape [4, 2], expected [at least 4, 3] for the tokens of the common vocabulary"
    )


def test_a_tied_head_is_read_from_the_embedding() -> None:
    models = [
        VocabularyTensors(State("one", w=numbered(3, 10), h=numbered(3, 30)), {"w": "embedding", "h": "head"}, {}),
        VocabularyTensors(State("two", w=numbered(4, 20)), {"w": "embedding", "h": "head"}, {"h": "w"}),
    ]  # fmt: skip
    rows = {kind: token_rows(WORDS, HELD[:2], 0, {}) for kind in ("embedding", "head")}
    found = VocabularyCheckpoint(models, 1, rows, None)
    assert list(found.tensors) == ["h", "w"]
    np.testing.assert_array_equal(found.read("h"), found.read("w"))
