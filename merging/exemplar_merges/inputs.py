"""What a merge from examples is given, and what it returns."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.training_file import TrainingFile
from flexswitch.codecs.threads import map_in_order, one_torch_thread
from flexswitch.merging.models.adapters import Adapter, get_adapter
from flexswitch.merging.models.examples import Examples, read_exemplars
from flexswitch.merging.static.merge import Combine
from flexswitch.merging.static.task_deltas import ModelDeltas

Found = TypeVar("Found")
Steps = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]


class Learned(NamedTuple):
    """How each tensor is combined, by name; a tensor without a way stays the base's.

    report: figures for the output's card and for `--json`.
    """

    ways: Mapping[str, Combine]
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class MergeInputs:
    """The task vectors of a merge, and for each task examples and how its model is run.

    weights: of the tasks, in their order. training: where the state of a training is kept. steps: opens a
    display of so many steps. note: receives what the user should know.
    """

    model: ModelDeltas
    adapters: Mapping[str, Adapter]
    examples: Mapping[str, Examples]
    weights: tuple[float, ...]
    device: str
    training: TrainingFile | None
    steps: Steps
    note: Callable[[str], None]

    @property
    def report(self) -> dict[str, Any]:
        """The number of examples that were drawn of each task, and from which files."""
        counts = {task: len(examples) for task, examples in self.examples.items()}
        return {"exemplars": counts, "split": "train"}

    @property
    def gradient_bytes(self) -> int:
        """The size of a gradient by all merged weights."""
        return 4 * self.model.entries

    def in_order(self, work: Callable[[int], Found], count: int, cost: int) -> Iterator[Found]:
        """Yields work(0), work(1), … in this order, each computed on one thread of torch.

        cost: bytes that one takes; those in progress fit into the memory.
        """

        def on_one_thread(number: int) -> Found:
            torch.set_num_threads(1)
            return work(number)

        with one_torch_thread():
            yield from map_in_order(
                on_one_thread, range(count), self.model.jobs, lambda number: cost, self.model.memory
            )


def open_adapters(model: ModelDeltas, given: str | None, max_length: int | None) -> dict[str, Adapter]:
    """Returns how each task's model is run; given: the adapter that the user named. Raises: UsageError."""
    return {
        task: get_adapter(model.base, vector.model.adapter, given, max_length)
        for task, vector in zip(model.tasks, model.vectors, strict=True)
    }


def draw_exemplars(folder: Path, tasks: tuple[str, ...], count: int, labelled: bool) -> dict[str, Examples]:
    """Returns up to `count` examples of each task's train file, those that `index` draws.

    Raises: InputError.
    """
    return {task: read_exemplars(folder, task, count, 0, labelled) for task in tasks}


def held_out(examples: Examples) -> tuple[Examples, Examples]:
    """Returns the examples that are learned from, and every fifth, which is not.

    Raises: InputError where there are fewer than five.
    """
    if len(examples) < 5:
        place = "" if examples.origin is None else f"{examples.origin.path}: "
        raise InputError(
            f"{place}has {len(examples)} examples, expected 5 or more, as every fifth is held out"
        )
    rows = torch.arange(len(examples)).numpy()
    return examples.take(rows[rows % 5 != 4]), examples.take(rows[rows % 5 == 4])
