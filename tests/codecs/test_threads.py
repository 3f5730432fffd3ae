"""Threads: results in order within a memory budget, clean ends, and the same results for any number of threads."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import LAWS

from flexswitch.codecs.threads import (
    PART_ENTRIES,
    map_in_order,
    one_torch_thread,
    parallel_map,
    run_in_parts,
)

MANY = 1 << 40


def free(item: object) -> int:
    return 0


class Meter:
    """Work that notes which items were begun, and in which threads."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.begun: list[int] = []
        self.threads: set[int] = set()
        self._seconds = seconds
        self._lock = threading.Lock()

    def __call__(self, item: int) -> int:
        with self._lock:
            self.begun.append(item)
            self.threads.add(threading.get_ident())
        time.sleep(self._seconds * (item % 3))
        return item * item


@pytest.mark.parametrize("jobs", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [0, 5, MANY])
def test_results_come_in_the_order_of_the_items(jobs: int, budget: int) -> None:
    meter = Meter()
    found = list(map_in_order(meter, range(30), jobs, lambda item: item, budget))
    assert found == [item * item for item in range(30)]
    assert sorted(meter.begun) == list(range(30))


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_there_may_be_no_items(jobs: int) -> None:
    assert list(map_in_order(Meter(), [], jobs, free, 0)) == []


def test_one_job_runs_in_the_callers_thread_when_a_result_is_asked_for() -> None:
    meter = Meter()
    results = map_in_order(meter, range(5), 1, free, 0)
    assert meter.begun == []
    assert next(results) == 0
    assert meter.begun == [0]
    assert list(results) == [1, 4, 9, 16]
    assert meter.threads == {threading.get_ident()}


def test_several_jobs_run_beside_each_other_and_not_in_the_callers_thread() -> None:
    barrier = threading.Barrier(3, timeout=20)
    meter = Meter()

    def meet(item: int) -> int:
        barrier.wait()
        return meter(item)

    assert list(map_in_order(meet, range(9), 3, free, MANY)) == [item * item for item in range(9)]
    assert threading.get_ident() not in meter.threads


@LAWS
@given(
    costs=st.lists(st.integers(0, 20), max_size=25),
    jobs=st.integers(2, 4),
    budget=st.integers(0, 40),
)
def test_what_is_in_the_making_stays_within_the_budget(costs: list[int], jobs: int, budget: int) -> None:
    lock, taken, most, alone = threading.Lock(), [0], [0], [False]

    def work(item: int) -> int:
        with lock:
            taken[0] += costs[item]
            most[0] = max(most[0], taken[0])
            alone[0] |= taken[0] > costs[item] and taken[0] > budget
        return item

    for place, item in enumerate(
        map_in_order(work, range(len(costs)), jobs, lambda item: costs[item], budget)
    ):
        assert item == place
        with lock:
            taken[0] -= costs[item]  # the caller has let go of the result
    assert most[0] <= max([budget, *costs])
    assert not alone[0]


@pytest.mark.parametrize("jobs", [2, 3])
def test_no_more_is_begun_than_twice_the_jobs_ahead(jobs: int) -> None:
    meter = Meter(0)
    results = map_in_order(meter, range(100), jobs, free, MANY)
    for taken in range(50):
        next(results)
        assert len(meter.begun) <= taken + 1 + 2 * jobs
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_an_exception_comes_through_in_its_place(jobs: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 4:
            raise KeyError("four")
        return item

    results = map_in_order(work, range(100), jobs, free, MANY)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(KeyError, match="four"):
        next(results)
    assert len(begun) <= 5 + 2 * jobs
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_exception_of_the_items_comes_through(jobs: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(map_in_order(Meter(), items(), jobs, free, MANY))


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_nothing_goes_on_once_it_is_closed(jobs: int) -> None:
    before = threading.active_count()
    meter = Meter()
    results = map_in_order(meter, range(1000), jobs, free, MANY)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    begun = list(meter.begun)
    assert len(begun) <= 1 + 2 * jobs
    time.sleep(0.02)
    assert meter.begun == begun


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_goes_on_after_an_error_in_the_caller(error: type[BaseException]) -> None:
    before, meter = threading.active_count(), Meter()

    def use() -> None:
        for result in map_in_order(meter, range(1000), 2, free, MANY):
            if result == 9:
                raise error

    with pytest.raises(error) as caught:
        use()
    del caught  # its frames hold the results
    assert threading.active_count() == before
    assert len(meter.begun) <= 8


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_parts_are_disjoint_and_cover_everything_on_as_many_threads_as_torch_uses(
    threads: int, count: int, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(threads)
    parts: list[tuple[int, int]] = []
    run_in_parts(lambda start, stop: parts.append((start, stop)), count, 100 * PART_ENTRIES)
    assert len(parts) == max(1, min(threads, count))
    assert sorted(place for start, stop in parts for place in range(start, stop)) == list(range(count))


def test_little_work_is_not_split(torch_threads: Callable[[int], None]) -> None:
    torch_threads(4)
    parts: list[tuple[int, int]] = []
    run_in_parts(lambda start, stop: parts.append((start, stop)), 10, 2 * PART_ENTRIES - 1)
    assert parts == [(0, 10)]


def test_an_error_in_any_part_comes_through(torch_threads: Callable[[int], None]) -> None:
    torch_threads(2)

    def work(start: int, stop: int) -> None:
        if start:
            raise LookupError("the second part")

    with pytest.raises(LookupError, match="the second part"):
        run_in_parts(work, 10, 2 * PART_ENTRIES)


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_parallel_map_returns_results_in_order_and_gives_each_call_one_torch_thread(
    jobs: int, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(2)
    with parallel_map(jobs) as run:
        assert run(lambda number: (number, torch.get_num_threads()), 9) == [(n, 1) for n in range(9)]
    assert torch.get_num_threads() == 2


def test_torch_gets_its_threads_back_after_an_error(torch_threads: Callable[[int], None]) -> None:
    torch_threads(2)

    def fail() -> None:
        with one_torch_thread():
            assert torch.get_num_threads() == 1
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert torch.get_num_threads() == 2
