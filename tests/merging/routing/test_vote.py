"""The votes of the nearest exemplars, and snapping their shares, against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import message

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.routing.mixing import MIXES, mixed, snap
from flexswitch.merging.routing.vote import VOTES, leading_tasks, votes
from flexswitch.merging.routing.voting_options import VotingOptions

COUNTS = st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 5))  # samples, neighbours, tasks


def neighbours(seed: int, samples: int, count: int, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns distances, some of them equal and some 0, and the tasks of the neighbours."""
    generator = np.random.Generator(np.random.PCG64(seed))
    distances = np.sort(generator.integers(0, 6, (samples, count)) * 0.5, axis=1)
    return distances, generator.integers(0, tasks, (samples, count)).astype(np.int32)


def plain_votes(distances: np.ndarray, task_ids: np.ndarray, tasks: int, vote: str) -> np.ndarray:
    weights = np.zeros((len(distances), tasks))
    for row, (each, ids) in enumerate(zip(distances, task_ids, strict=True)):
        for distance, task in zip(each, ids, strict=True):
            spread = each[-1] ** 2 - each[0] ** 2
            fall = (distance**2 - each[0] ** 2) / spread if spread else 0.0
            weights[row, task] += math.exp(-2 * fall) if vote == "kernel" else 1
        weights[row] /= weights[row].sum()
    return weights


@given(seed=st.integers(0, 2**32), counts=COUNTS, vote=st.sampled_from(VOTES))
def test_votes_equal_a_plain_loop_and_sum_to_1(seed, counts, vote):
    samples, count, tasks = counts
    distances, ids = neighbours(seed, samples, count, tasks)
    weights = votes(distances, ids, tasks, vote)
    np.testing.assert_allclose(weights, plain_votes(distances, ids, tasks, vote), rtol=0, atol=1e-12)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=0, atol=1e-12)


def test_the_kernel_vote_falls_with_distance_and_stays_positive():
    distances = np.array([[1.0, 2.0, 3.0, 4.0]])
    weights = votes(distances, np.array([[0, 1, 2, 3]], np.int32), 4, "kernel")[0]
    assert (np.diff(weights) < 0).all()
    assert weights[3] / weights[0] == pytest.approx(math.exp(-2))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("vote", VOTES)
def test_votes_do_not_depend_on_the_scale_of_distances(vote, scale):
    distances, ids = neighbours(3, 20, 10, 4)
    np.testing.assert_allclose(
        votes(scale * distances, ids, 4, vote), votes(distances, ids, 4, vote), atol=1e-9
    )


@pytest.mark.parametrize("vote", VOTES)
def test_neighbours_at_one_distance_have_equal_votes(vote):
    for distance in (0.0, 2.5):
        weights = votes(np.full((1, 4), distance), np.array([[0, 1, 1, 1]], np.int32), 2, vote)
        assert weights.tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize("vote", VOTES)
def test_a_samples_votes_are_the_same_alone_and_in_a_batch(vote):
    distances = np.sort(np.random.Generator(np.random.PCG64(0)).random((33, 7)), axis=1)
    ids = neighbours(0, 33, 7, 5)[1]
    whole = votes(distances, ids, 5, vote)
    for row in range(33):
        np.testing.assert_array_equal(
            votes(distances[row : row + 1], ids[row : row + 1], 5, vote)[0], whole[row]
        )


def test_an_unknown_vote_is_refused():
    assert message(UsageError, lambda: VotingOptions(vote="kernal")) == (
        "--vote: no vote is named 'kernal'; did you mean 'kernel'? (known: uniform, kernel)"
    )


@given(seed=st.integers(0, 2**32), counts=COUNTS, vote=st.sampled_from(VOTES))
def test_the_leading_task_has_the_largest_weight_and_the_nearest_exemplar_of_ties(seed, counts, vote):
    samples, count, tasks = counts
    distances, ids = neighbours(seed, samples, count, tasks)
    weights = votes(distances, ids, tasks, vote)
    for row, leading in enumerate(leading_tasks(weights, ids)):
        assert leading == next(task for task in ids[row] if weights[row, task] == weights[row].max())


def test_a_tie_goes_to_the_task_of_the_nearer_exemplar():
    weights = votes(np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[1, 0, 0, 1]], np.int32), 2, "uniform")
    assert leading_tasks(weights, np.array([[1, 0, 0, 1]], np.int32)).tolist() == [1]


@given(seed=st.integers(0, 2**32), counts=COUNTS, vote=st.sampled_from(VOTES), within=st.floats(0, 0.49))
def test_snapping_drops_small_shares_keeps_the_largest_and_sums_to_1(seed, counts, vote, within):
    samples, count, tasks = counts
    weights = votes(*neighbours(seed, samples, count, tasks), tasks, vote).astype(np.float32)
    snapped = snap(weights, within)
    assert snapped.dtype == np.float32
    np.testing.assert_allclose(snapped.sum(1), 1, atol=1e-6)
    for before, after in zip(weights, snapped, strict=True):
        kept = [share for share in before if share > within + 1e-6 or share == before.max()]
        expected = [share / sum(kept) if share in kept else 0 for share in before]
        np.testing.assert_allclose(after, expected, atol=1e-6)
        if before.max() >= 1 - within:
            assert sorted(after) == [0] * (tasks - 1) + [1]


def test_snapping_within_0_changes_no_bit():
    weights = votes(*neighbours(0, 50, 9, 4), 4, "kernel").astype(np.float32)
    np.testing.assert_array_equal(snap(weights, 0), weights)


def test_shares_as_large_as_the_largest_are_kept():
    even = np.full((1, 10), 0.1, np.float32)
    np.testing.assert_array_equal(snap(even, 0.2), even)


@given(seed=st.integers(0, 2**32), counts=COUNTS, vote=st.sampled_from(VOTES))
def test_the_mix_root_has_squares_that_sum_to_1_and_share_changes_nothing(seed, counts, vote):
    samples, count, tasks = counts
    shares = votes(*neighbours(seed, samples, count, tasks), tasks, vote).astype(np.float32)
    roots = mixed(shares, "root")
    assert roots.dtype == np.float32
    np.testing.assert_allclose(np.square(roots.astype(np.float64)), shares, rtol=1e-6)
    assert mixed(shares, "share") is shares


def test_an_unknown_mix_is_refused():
    assert MIXES == ("share", "root")
    expected = "--mix: no mix is named 'roots'; did you mean 'root'? (known: share, root)"
    assert message(UsageError, lambda: VotingOptions(mix="roots")) == expected


def test_fewer_than_one_neighbour_is_refused():
    assert message(UsageError, lambda: VotingOptions(0)) == "--neighbours 0: expected 1 or more"


@pytest.mark.parametrize("within", [-0.1, 0.5, math.nan])
def test_snapping_within_a_half_or_more_is_refused(within):
    assert message(UsageError, lambda: VotingOptions(snap=within)) == (
        f"--snap {within}: expected a share from 0 to below 0.5"
    )
