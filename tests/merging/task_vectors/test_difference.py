"""Differences of two blocks: against plain numpy, by the compiled passes and by those over few entries."""

import numpy as np
import pytest
import torch

from flexswitch.merging.task_vectors.difference import difference

pytestmark = pytest.mark.usefixtures("passes")

INF, NAN, LARGEST = float("inf"), float("nan"), 3e38
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("after", DTYPES)
@pytest.mark.parametrize("before", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 37, 4099])
def test_a_difference_is_that_of_the_float32_values(
    before: torch.dtype, after: torch.dtype, count: int
) -> None:
    generator = torch.Generator().manual_seed(count)
    base, finetuned = (torch.randn(count, generator=generator).to(dtype) for dtype in (before, after))
    delta, finite = difference(base, finetuned)
    assert np.array_equal(delta, finetuned.float().numpy() - base.float().numpy())
    assert (delta.dtype, finite) == (np.float32, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("before", "after", "delta", "finite"),
    [
        ([INF, -INF, NAN, 1.0], [INF, -INF, NAN, 1.5], [0, 0, 0, 0.5], True),
        ([INF, 1.0], [-INF, 1.0], [-INF, 0], False),
        ([1.0, 2.0], [NAN, 2.0], [NAN, 0], False),
        ([-LARGEST, 0.0], [LARGEST, -0.0], [INF, 0], False),
    ],
)
def test_entries_that_stay_infinite_do_not_change_and_others_are_reported(
    dtype: torch.dtype, before: list[float], after: list[float], delta: list[float], finite: bool
) -> None:
    found, all_finite = difference(torch.tensor(before, dtype=dtype), torch.tensor(after, dtype=dtype))
    assert np.array_equal(found, np.array(delta, np.float32), equal_nan=True)
    assert all_finite == finite
