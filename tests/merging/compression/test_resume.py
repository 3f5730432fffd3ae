"""An interrupted compression resumes where it stopped and writes the same bytes as an uninterrupted one."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import State, extracted, file_pair, flip_bit, message

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.safetensors_file import RangeReader
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.compression import t_switch
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.delta import Compressed, Delta
from flexswitch.merging.compression.resume import side_file
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.task_vector import TaskVector
from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile

TENSORS = ["a", "b", "c.same", "d", "e", "f"]
ANOTHER_RUN = "belongs to a compression of other checkpoints or with other settings; repeat that one, or delete the file"


def states() -> tuple[State, State]:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn((40, 5), generator=generator) for name in TENSORS}
    tuned = {name: tensor + torch.randn((40, 5), generator=generator) for name, tensor in base.items()}
    return base, tuned | {"c.same": base["c.same"], "head": torch.ones(3)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base.safetensors, finetuned.safetensors and task.fsw, made without interruption."""
    folder = tmp_path_factory.mktemp("checkpoints")
    compress(file_pair(folder, *states()), folder / "task.fsw", "task", "t-switch", {"drop": 0.6}, False)
    return folder


def opened(folder: Path) -> CheckpointPair:
    base, tuned = (open_checkpoint(str(folder / f"{stem}.safetensors")) for stem in ("base", "finetuned"))
    return CheckpointPair(HashingCheckpoint(base), tuned)


class Made:
    """Records the tensors that a method compresses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        method = t_switch.t_switch

        def counting(delta: Delta, *, drop: float = 0.6) -> Compressed:
            self.names.append(delta.name)
            return method(delta, drop=drop)

        monkeypatch.setattr(t_switch, "t_switch", counting)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(monkeypatch)


def run(
    vector: TaskVector,
    path: Path,
    on_tensor: Callable[[str], None] = lambda name: None,
    jobs: int = 1,
    drop: float = 0.6,
) -> None:
    compress(vector, path, "task", "t-switch", {"drop": drop}, False, on_tensor, jobs, resume=True)


def interrupt(vector: TaskVector, path: Path, name: str, jobs: int = 1) -> None:
    """Interrupts a compression, as Ctrl-C does, after a tensor is finished."""

    def seen(found: str) -> None:
        if found == name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(vector, path, seen, jobs)


def same(path: Path, checkpoints: Path) -> bool:
    return path.read_bytes() == (checkpoints / "task.fsw").read_bytes()


# --- interrupted and resumed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("name", TENSORS)
def test_finished_tensors_are_not_compressed_again(
    tmp_path: Path, checkpoints: Path, made: Made, name: str, jobs: int
) -> None:
    path, finished = tmp_path / "task.fsw", TENSORS[: TENSORS.index(name) + 1]
    interrupt(opened(checkpoints), path, name, jobs)
    assert [file.name for file in tmp_path.iterdir()] == ["task.fsw.resume"]
    made.names.clear()
    seen: list[str] = []
    run(opened(checkpoints), path, seen.append, jobs)
    assert sorted(made.names) == TENSORS[len(finished) :]
    assert seen == TENSORS
    assert same(path, checkpoints)
    assert [file.name for file in tmp_path.iterdir()] == ["task.fsw"]


def test_a_compression_can_be_interrupted_after_every_tensor(
    tmp_path: Path, checkpoints: Path, made: Made
) -> None:
    path = tmp_path / "task.fsw"
    for name in TENSORS:
        interrupt(opened(checkpoints), path, name)
    assert made.names == TENSORS
    run(opened(checkpoints), path)
    assert made.names == TENSORS
    assert same(path, checkpoints)


def test_an_uninterrupted_compression_leaves_no_side_file(tmp_path: Path, checkpoints: Path) -> None:
    run(opened(checkpoints), tmp_path / "task.fsw")
    assert same(tmp_path / "task.fsw", checkpoints)
    assert [file.name for file in tmp_path.iterdir()] == ["task.fsw"]


def test_without_resume_an_interrupt_leaves_nothing(tmp_path: Path, checkpoints: Path) -> None:
    def seen(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(opened(checkpoints), tmp_path / "t.fsw", "t", "t-switch", {"drop": 0.6}, False, seen)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_keeps_the_finished_tensors(
    tmp_path: Path, checkpoints: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, method = tmp_path / "task.fsw", t_switch.t_switch

    def failing(delta: Delta, *, drop: float = 0.6) -> Compressed:
        if delta.name == "d":
            raise MemoryError
        return method(delta, drop=drop)

    with monkeypatch.context() as context:
        context.setattr(t_switch, "t_switch", failing)
        with pytest.raises(MemoryError):
            run(opened(checkpoints), path)
    assert made.names == TENSORS[:3]
    run(opened(checkpoints), path)
    assert made.names == TENSORS
    assert same(path, checkpoints)


def test_the_base_s_finished_tensors_are_not_hashed_again(
    tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {name: torch.zeros(5000) for name in "uvw"}
    folder = tmp_path / "large"
    folder.mkdir()
    file_pair(folder, state, {name: torch.ones(5000) for name in state})
    interrupt(opened(folder), tmp_path / "t.fsw", "v")
    pair, read, sizes = opened(folder), RangeReader.read, []

    def recording(self: RangeReader, offset: int, size: int) -> np.ndarray:
        sizes.append(size)
        return read(self, offset, size)

    monkeypatch.setattr(RangeReader, "read", recording)
    run(pair, tmp_path / "t.fsw")
    assert sizes == [20_000, 20_000]  # 'w' of the two checkpoints
    assert set(pair.hints.base_digests) == set(state)


def test_the_compression_of_a_task_vector_file_is_resumed(
    tmp_path: Path, checkpoints: Path, made: Made
) -> None:
    vector = extracted(opened(checkpoints), tmp_path / "task.tv.safetensors")
    interrupt(vector, tmp_path / "task.fsw", "b")
    run(TaskVectorFile(vector.path), tmp_path / "task.fsw")
    assert made.names == TENSORS
    assert same(tmp_path / "task.fsw", checkpoints)


# --- another run's side file ------------------------------------------------------------------------------


def refused(action: Callable[[], None], path: Path) -> None:
    side = side_file(path)
    before = side.read_bytes()
    assert message(InputError, action) == f"{side}: {ANOTHER_RUN}"
    assert side.read_bytes() == before
    assert sorted(file.name for file in path.parent.glob("task.fsw*")) == ["task.fsw.resume"]


def test_other_settings_or_another_name_are_another_run(tmp_path: Path, checkpoints: Path) -> None:
    path = tmp_path / "task.fsw"
    interrupt(opened(checkpoints), path, "b")
    refused(lambda: run(opened(checkpoints), path, drop=0.5), path)
    settings = {"drop": 0.6}
    refused(
        lambda: compress(opened(checkpoints), path, "other", "t-switch", settings, False, resume=True), path
    )
    refused(
        lambda: compress(opened(checkpoints), path, "task", "p-discard", settings, False, resume=True), path
    )
    run(opened(checkpoints), path)
    assert same(path, checkpoints)


@pytest.mark.parametrize("stem", ["base", "finetuned"])
def test_changed_checkpoints_are_another_run(tmp_path: Path, stem: str) -> None:
    path, base, tuned = tmp_path / "task.fsw", *states()
    pair = file_pair(tmp_path, base, tuned)
    interrupt(pair, path, "b")
    file = tmp_path / f"{stem}.safetensors"
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    refused(lambda: run(opened(tmp_path), path), path)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(opened(tmp_path), path)


def test_a_file_with_other_content_is_another_run(tmp_path: Path, checkpoints: Path) -> None:
    path = tmp_path / "task.fsw"
    for data in (b"\n", b"mine", b"\xff" * 100, b"{}\n{}\n"):
        side_file(path).write_bytes(data)
        refused(lambda: run(opened(checkpoints), path), path)


def test_a_side_file_that_is_a_link_is_refused_and_nothing_is_written_through_it(
    tmp_path: Path, checkpoints: Path
) -> None:
    side, foreign = side_file(tmp_path / "task.fsw"), tmp_path / "foreign"
    for exists in (False, True):
        foreign.write_bytes(b"") if exists else None
        side.unlink(missing_ok=True)
        side.symlink_to(foreign)
        found = message(InputError, lambda: run(opened(checkpoints), tmp_path / "task.fsw"))
        assert found == f"{side}: is a link or no file, and finished tensors go there; move it away"
        assert (foreign.read_bytes() if foreign.exists() else None) == (b"" if exists else None)
    side.unlink()
    os.mkfifo(side)  # opening it would wait for ever
    assert "is a link or no file" in message(
        InputError, lambda: run(opened(checkpoints), tmp_path / "task.fsw")
    )


def test_an_existing_output_is_refused_first(tmp_path: Path, checkpoints: Path) -> None:
    path = tmp_path / "task.fsw"
    path.write_text("mine")
    error = message(InputError, lambda: run(opened(checkpoints), path))
    assert error == f"{path}: exists already; give another output, or --overwrite to replace it"
    assert [file.name for file in tmp_path.iterdir()] == ["task.fsw"]


# --- damage -----------------------------------------------------------------------------------------------


@pytest.fixture
def side(tmp_path: Path, checkpoints: Path) -> Path:
    """The side file of a compression that stopped after four of six tensors."""
    interrupt(opened(checkpoints), tmp_path / "task.fsw", "d")
    return side_file(tmp_path / "task.fsw")


def finish(side: Path, checkpoints: Path) -> bool:
    """Resumes from a damaged side file; returns whether it is refused as that of another run."""
    path = side.with_name("task.fsw")
    try:
        run(opened(checkpoints), path)
    except InputError as error:
        assert str(error) == f"{side}: {ANOTHER_RUN}"  # noqa: PT017  # resuming is right, too
        assert not path.exists()
        return True
    assert same(path, checkpoints)
    assert not side.exists()
    path.unlink()
    return False


def test_a_side_file_cut_short_anywhere_is_resumed(side: Path, checkpoints: Path, made: Made) -> None:
    data = side.read_bytes()
    first = data.index(b"\n") + 1
    counts = []
    for length in [*range(1, first, 197), *range(first, len(data), 41), len(data)]:
        side.write_bytes(data[:length])
        made.names.clear()
        assert finish(side, checkpoints) == (length < first)
        counts.append(len(made.names))
    assert counts[-1] == 2
    assert sorted(set(counts)) == [0, 2, 3, 4, 5, 6]
    assert counts[counts.index(6) :] == sorted(counts[counts.index(6) :], reverse=True)


def test_an_empty_side_file_starts_from_the_beginning(side: Path, checkpoints: Path, made: Made) -> None:
    side.write_bytes(b"")
    made.names.clear()
    assert not finish(side, checkpoints)
    assert len(made.names) == 6


def test_a_side_file_with_a_flipped_bit_anywhere_is_resumed_or_refused(side: Path, checkpoints: Path) -> None:
    data = side.read_bytes()
    first = data.index(b"\n") + 1
    for offset in [*range(0, first, 101), *range(first - 1, len(data), 19)]:
        side.write_bytes(data)
        flip_bit(side, offset, offset % 8)
        assert finish(side, checkpoints) == (offset < first)


def test_bytes_after_the_last_tensor_are_discarded(side: Path, checkpoints: Path, made: Made) -> None:
    for behind in (b"\n", b"\0" * 5000, b'{"entry":', b"\xff\n", b"[" * 100_000):
        data = side.read_bytes()
        side.write_bytes(data + behind)
        made.names.clear()
        assert not finish(side, checkpoints)
        assert made.names == ["e", "f"]
        side.write_bytes(data)
