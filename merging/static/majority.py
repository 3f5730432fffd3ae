"""The sign that is elected more often in the whole model, for entries whose votes are equal.

Source: the published code of Yadav et al. 2023 (arXiv 2306.01708); docs/methods.md §6.3.
"""

from collections.abc import Iterator, Sequence
from functools import partial as bind

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.static.election import elected_signs
from flexswitch.merging.static.task_deltas import ModelDeltas
from flexswitch.merging.static.trimming import keep_reaching


def majority(model: ModelDeltas, least: Sequence[float], densities: Sequence[float], election: str) -> float:
    """Returns the sign that is elected for more entries of the model, −1 where both are as frequent."""

    def compute() -> float:
        balance = sum(
            int(elected_signs(block.deltas, model.weights_of(name), election).sum())
            for name in model.names
            if model.tensor(name).tasks
            for block in model.tensor(name).blocks(bind(reaching, least))
        )
        return 1.0 if balance > 0 else -1.0

    return model.once(("majority", tuple(densities), election), compute)


def reaching(least: Sequence[float], task: int, blocks: Iterator[FloatArray]) -> Iterator[FloatArray]:
    """Yields the blocks of a task with entries below its threshold set to zero."""
    return keep_reaching(blocks, least[task])
