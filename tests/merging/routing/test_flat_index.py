"""FAISS is used where it can be: wheels for GPUs are found by what they have, and a failed import is survived."""

import builtins
import threading
import time
import types

import faiss
import numpy as np
import pytest

from flexswitch.merging.routing import flat_index
from flexswitch.merging.routing.neighbour_search import NeighbourSearch

VECTORS = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
QUERIES = VECTORS[:20] + np.float32(0.01)


class Index:
    """An index "on a GPU": FAISS's own, which notes where it was put and refuses two searches at once."""

    def __init__(self, index, gpu):
        self.index, self.gpu, self.searching = index, gpu, threading.Lock()

    def add(self, vectors):
        self.index.add(vectors)

    def search(self, queries, count):
        assert self.searching.acquire(blocking=False), "two threads search one index of a GPU"
        try:
            time.sleep(0.001)
            return self.index.search(queries, count)
        finally:
            self.searching.release()


def gpu_wheel(gpus):
    """Returns a stand-in for the module of a wheel for GPUs, on a machine with so many."""
    made = []

    def to_gpu(resources, gpu, index):
        assert resources == "resources"
        made.append(Index(index, gpu))
        return made[-1]

    return types.SimpleNamespace(
        IndexFlatL2=faiss.IndexFlatL2, StandardGpuResources=lambda: "resources",
        get_num_gpus=lambda: gpus, index_cpu_to_gpu=to_gpu, made=made,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "wheel", "place"),
    [
        ("cuda", gpu_wheel(1), 0),
        ("cuda:1", gpu_wheel(2), 1),
        ("cuda:1", gpu_wheel(1), "torch"),
        ("cuda", gpu_wheel(0), "torch"),
        ("cuda", faiss, "torch"),
        ("cuda", None, "torch"),
        ("cpu", None, "torch"),
    ],
    ids=[
        "a GPU",
        "the second GPU",
        "one GPU of two",
        "no GPU",
        "a wheel for CPUs",
        "no FAISS",
        "no FAISS on the CPU",
    ],
)
def test_an_index_lies_where_faiss_can_use_it_and_with_torch_otherwise(monkeypatch, device, wheel, place):
    monkeypatch.setattr(flat_index, "loaded_faiss", lambda: wheel)
    monkeypatch.setattr(flat_index, "_torch_index", lambda vectors, device: "torch")
    found = flat_index.flat_index(VECTORS, device, None)
    assert (found if found == "torch" else wheel.made[-1].gpu) == place
    if found != "torch":
        expected = NeighbourSearch(VECTORS).search(QUERIES, 5).positions
        np.testing.assert_array_equal(found(QUERIES, 5)[1], expected)


def test_threads_take_turns_at_an_index_of_a_gpu(monkeypatch):
    monkeypatch.setattr(flat_index, "loaded_faiss", lambda: gpu_wheel(1))
    search, failed = flat_index.flat_index(VECTORS, "cuda", None), []

    def ask():
        try:
            for _ in range(3):
                search(QUERIES, 5)
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []


@pytest.mark.parametrize("error", [RuntimeError("no CUDA driver"), ImportError("libcuda.so.1")], ids=repr)
def test_an_import_of_faiss_that_fails_changes_no_answer(monkeypatch, error):
    expected = NeighbourSearch(VECTORS).search(QUERIES, 5)
    imported = builtins.__import__

    def failing(name, *rest):
        if name == "faiss":
            raise error
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", failing)
    search = NeighbourSearch(VECTORS, approximate_from=100)
    assert search.recall == 1
    for one, other in zip(search.search(QUERIES, 5), expected, strict=True):
        np.testing.assert_array_equal(one, other)
