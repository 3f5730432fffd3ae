"""Pieces of a delta are read by themselves, without a trace in what is read afterwards."""

import torch
from support.checkpoints import MemoryCheckpoint, State

from flexswitch.merging.checkpoints.fingerprint import fingerprint
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint
from flexswitch.merging.task_vectors.stored_weights import StoredWeights
from flexswitch.merging.task_vectors.task_vector import READ_ENTRIES

ROWS, COLUMNS = 96, 1 << 13  # three blocks


def pair(rows: int = ROWS) -> tuple[State, State]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(ROWS, COLUMNS, generator=generator).bfloat16()
    change = torch.randn(rows, COLUMNS, generator=generator).bfloat16()
    return {"w": base}, {"w": base[:rows] + change}


def test_a_sample_has_a_piece_of_each_block() -> None:
    base, finetuned = pair()
    weights = StoredWeights(MemoryCheckpoint(base), MemoryCheckpoint(finetuned), {"w": "w"}, "m")
    delta = (finetuned["w"].float() - base["w"].float()).reshape(-1)
    pieces = torch.from_numpy(weights.sample("w"))
    assert pieces.shape == (3, 1024)
    columns = set()
    for block, piece in zip(delta.split(READ_ENTRIES), pieces, strict=True):
        (at,) = [
            start for start in torch.nonzero(block == piece[0])[:, 0].tolist() if match(block, start, piece)
        ]
        columns.add(at % COLUMNS)
    assert len(columns) == 3


def match(block: torch.Tensor, start: int, piece: torch.Tensor) -> bool:
    return torch.equal(block[start : start + len(piece)], piece)


def test_rows_that_only_the_base_has_are_zero_in_a_sample() -> None:
    base, finetuned = pair(rows=32)
    weights = StoredWeights(MemoryCheckpoint(base), MemoryCheckpoint(finetuned), {"w": "w"}, "m")
    assert [bool(piece.any()) for piece in weights.sample("w")] == [True, False, False]


def test_a_sample_of_a_small_tensor_is_empty() -> None:
    state: State = {"w": torch.ones(1000)}
    weights = StoredWeights(MemoryCheckpoint(state), MemoryCheckpoint(state), {"w": "w"}, "m")
    assert weights.sample("w").shape == (0, 1024)


def test_a_sample_leaves_the_digest_of_the_base_as_it_is() -> None:
    base, finetuned = pair()
    hashing = HashingCheckpoint(MemoryCheckpoint(base), remembers=False)
    weights = StoredWeights(hashing, MemoryCheckpoint(finetuned), {"w": "w"}, "m")
    blocks = weights.blocks("w")
    next(blocks)
    weights.sample("w")
    assert len(list(blocks)) == 2
    assert hashing.fingerprint() == fingerprint(MemoryCheckpoint(base))
