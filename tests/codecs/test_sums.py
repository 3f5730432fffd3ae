"""Steady sums: the same for any blocks, equal to plain Python and close to exact arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import LAWS

from flexswitch.codecs.sums import square_sum, steady_sum

pytestmark = pytest.mark.usefixtures("passes")


def plain_sum(terms: list[float]) -> float:
    """Returns the sum of eight sums, of every eighth term each."""
    sums = [0.0] * 8
    for index, term in enumerate(terms):
        sums[index % 8] += term
    total = 0.0
    for each in sums:
        total += each
    return total


@LAWS
@given(count=st.integers(0, 100), seed=st.integers(0, 99))
def test_a_steady_sum_does_not_depend_on_the_blocks(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    terms = generator.normal(size=count) * 10.0 ** generator.integers(-9, 9, count)
    for block in (8, 16, 48, 1 << 20):
        found = steady_sum(terms[start : start + block] for start in range(0, count, block))
        assert found == plain_sum(terms.tolist())


@LAWS
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=70))
def test_a_sum_of_squares_equals_plain_python_and_differs_from_exact_arithmetic_by_rounding_only(
    values: list[float],
) -> None:
    squares = [value**2 for value in values]
    found = square_sum(np.array(values, np.float32))
    assert found == plain_sum(squares)
    assert found == pytest.approx(math.fsum(squares), rel=1e-14, abs=0)


def test_a_long_sum_of_squares_loses_nothing_to_rounding() -> None:
    values = np.random.default_rng(0).normal(size=100_003).astype(np.float32)
    exact = math.fsum(float(value) ** 2 for value in values)
    assert square_sum(values) == pytest.approx(exact, rel=1e-13, abs=0)
