"""Reading the deltas of all tasks side by side: any number of threads, blocks of any size, bounded memory."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import MemoryCheckpoint, assert_same_state, extracted, memory_pair, message
from support.static_merges import NAMES, merged, vectors_of

from flexswitch.codecs.errors import ArtifactError
from flexswitch.merging.methods.registry import STATIC_MERGES, get_method
from flexswitch.merging.static.task_deltas import ModelDeltas

ENTRIES = 9100  # three of the smallest blocks


def large_case(tasks: int = 3) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(5)
    base = {
        "v": torch.randn(5, generator=generator),
        "w": torch.randn(70, ENTRIES // 70, generator=generator),
    }
    found = [
        {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(tasks)
    ]
    return base, found


@pytest.mark.parametrize("method", STATIC_MERGES)
def test_no_merge_depends_on_threads_or_memory(method: str) -> None:
    base, tasks = large_case()
    vectors = vectors_of(base, tasks[: get_method(method, "merge").tasks[1]])
    expected = dict(merged(base, vectors, method, jobs=1))
    for jobs, memory in ((1, 1), (3, 1), (3, 10**9)):
        assert_same_state(merged(base, vectors, method, jobs=jobs, memory=memory), expected)


def test_blocks_hold_the_deltas_and_the_base_in_order() -> None:
    base, tasks = large_case()
    model = ModelDeltas(MemoryCheckpoint(base), vectors_of(base, tasks), list(base), jobs=2, memory=1)
    blocks = list(model.tensor("w").blocks())
    assert [block.start for block in blocks] == [0, 4096, 8192]
    assert torch.equal(torch.cat([block.base for block in blocks]), base["w"].reshape(-1))
    deltas = torch.cat([block.deltas for block in blocks], dim=1)
    for delta, task in zip(deltas, tasks, strict=True):
        assert torch.equal(delta, (task["w"] - base["w"]).reshape(-1))


@pytest.mark.parametrize("tasks", [1, 8, 200])
@pytest.mark.parametrize("jobs", [1, 64])
def test_the_blocks_in_progress_fit_into_the_memory(tasks: int, jobs: int) -> None:
    base = {"w": torch.zeros(3)}
    vectors = dict.fromkeys(map(str, range(tasks)), memory_pair(base, base))
    for memory in (10**8, 10**9, 10**10):
        entries = ModelDeltas(MemoryCheckpoint(base), vectors, ["w"], jobs, memory).block_entries
        assert entries == 4096 or 4 * tasks * entries * (jobs + 2) <= memory


def test_a_damaged_task_is_noticed_at_its_last_block(tmp_path: Path) -> None:
    base, tasks = large_case(1)
    path = tmp_path / "a.tv.safetensors"
    extracted(vectors_of(base, tasks)["a"], path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile

    found = merged(base, {"a": TaskVectorFile(path)}, "average")
    assert "is damaged" in message(ArtifactError, lambda: dict(found))


def test_a_merge_of_many_tasks_adds_them_in_their_order() -> None:
    base = {"w": torch.zeros(1)}
    tasks = [{"w": torch.tensor([value])} for value in (1e8, 1.0, -1e8)]
    found = {}
    for order in ((0, 1, 2), (0, 2, 1)):
        vectors = vectors_of(base, [tasks[place] for place in order])
        found[order] = float(merged(base, vectors, "task-arithmetic", {"lambda": 1})["w"])
    assert found == {(0, 1, 2): 0.0, (0, 2, 1): 1.0}
    assert len(NAMES) == 8
