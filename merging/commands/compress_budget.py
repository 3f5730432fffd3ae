"""`compress --budget`: the smallest artifact that keeps a share of the fine-tuned model's answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flexswitch.codecs.errors import InputError, TargetSizeError
from flexswitch.codecs.format.atomic import atomic_file
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.quality_records import BudgetRecord, BudgetTry
from flexswitch.codecs.format.rewriting import rewrite_artifact
from flexswitch.codecs.format.training_file import Arrays, TrainingFile, run_identity
from flexswitch.merging.commands.reporter import Reporter, counted
from flexswitch.merging.compression.budget import answers_to_tell, shown_budget, size_setting
from flexswitch.merging.compression.plan import TrainingInputs
from flexswitch.merging.task_vectors.task_vector import TaskVector

if TYPE_CHECKING:
    from flexswitch.merging.flex_switch.held_out_answers import HeldOutAnswers

_SUFFIX = ".tries"

Write = Callable[[Path, Mapping[str, Any]], None]  # compresses with these settings into a file, replacing it


@dataclass(frozen=True)
class Budget:
    """The share of answers to keep, on these examples, by a method with settings but that of its size."""

    share: float
    method: str
    settings: Mapping[str, Any]
    answers: "HeldOutAnswers"


def tries_path(output: Path) -> Path:
    """Returns the path of the file that holds the finished tries of an output."""
    return output.with_name(output.name + _SUFFIX)


def search_identity(
    budget: Budget, vector: TaskVector, task: str, inputs: TrainingInputs, extras: str
) -> str:
    """Returns the identity of a search: what its tries depend on; files count by their sizes and times."""
    given = {
        "budget": budget.share,
        "method": budget.method,
        "values": size_setting(budget.method).values,  # tries are stored by their numbers
        "task": task,
        "base": vector.identity().fingerprint,
        "finetuned": vector.hints.file_stamps(),
        "tensors": list(vector.tensors),
        "extras": extras,
        "exemplars": budget.answers.digest,
        "adapter": inputs.adapter,
        "device": inputs.device,
        "max_length": inputs.max_length,
    }
    return run_identity(budget.settings, given)


def compress_within(
    budget: Budget, output: Path, overwrite: bool, write: Write, run: str | None, reporter: Reporter
) -> None:
    """Writes the smallest artifact found that keeps the budget's share of the answers.

    run: the identity of the search, for a file of its finished tries from which the same search continues;
    None keeps none. Raises: InputError if no artifact keeps that many; nothing is written then.
    """
    count, needed = budget.answers.examples, answers_to_tell(budget.share) if budget.share < 1 else 0
    if count < needed:
        reporter.note(
            f"the budget is measured on only {counted(count, 'example')}: with one answer each, "
            f"{shown_budget(budget.share)} asks for all of them; from {needed:,} on one may differ"
        )
    with atomic_file(output, overwrite) as partial:
        file = None if run is None else TrainingFile(tries_path(output), 1, run)
        search = _Search(budget, partial, file, reporter)
        search.resume()
        search.run(write)
        chosen = search.chosen()
        artifact = open_artifact(search.best)
        header = artifact.header.model_copy(update={"budget": search.record(chosen)})
        rewrite_artifact(artifact, partial, header, map(artifact.packed_tensor, artifact.header.tensors))
    if file is not None:
        file.remove()


@dataclass
class _Search:
    """A search in progress: its finished tries by the number of the value, in their order.

    partial: where a try is written. file: where finished tries are kept.
    """

    budget: Budget
    partial: Path
    file: TrainingFile | None
    reporter: Reporter
    tries: dict[int, BudgetTry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.setting = size_setting(self.budget.method)
        self.best = self.partial.with_name("best.fsw")  # the artifact of `_smallest`

    def resume(self) -> None:
        """Restores the finished tries of an interrupted search, if there is one. Raises: InputError."""
        stored = None if self.file is None else self.file.read(self._check_arrays)
        if stored is None:
            return
        columns = (stored[name].tolist() for name in ("numbers", "bytes", "agreements"))
        for number, size, agreement in zip(*columns, strict=True):
            self.tries[number] = BudgetTry(self.setting.values[number], size, agreement)
        stored["best"].tofile(self.best)

    def run(self, write: Write) -> None:
        """Tries values until one keeps enough answers and the next smaller does not."""
        fails: int | None = None
        passes: int | None = None
        while (number := self.setting.next_number(fails, passes)) is not None:
            if self._keeps_enough(number, write):
                passes = number
            else:
                fails = number

    def chosen(self) -> BudgetTry:
        """Returns the try of the smallest artifact that keeps enough. Raises: InputError if none does."""
        smallest = self._smallest()
        if smallest is not None:
            return self.tries[smallest]
        if self.file is not None:
            self.file.remove()
        best = max(self.tries.values(), key=lambda each: (each.agreement, -each.bytes))
        raise InputError(
            f"{self.partial}: nothing that was tried reaches {shown_budget(self.budget.share)} on "
            f"{counted(self.budget.answers.examples, 'held-out example')}: the best is "
            f"{100 * best.agreement:.1f} % at {best.bytes:,} bytes ({self._shown(best.value)}); ask for "
            "less, or take another method"
        )

    def record(self, chosen: BudgetTry) -> BudgetRecord:
        """Returns the record of the search."""
        return BudgetRecord(
            asked=self.budget.share,
            setting=self.setting.name,
            examples=self.budget.answers.examples,
            kept=chosen.agreement,
            tries=list(self.tries.values()),
        )

    def _keeps_enough(self, number: int, write: Write) -> bool:
        if number not in self.tries:
            value = self.setting.values[number]
            try:
                write(self.partial, {**self.budget.settings, self.setting.name: value})
            except TargetSizeError:
                if number == len(self.setting.values) - 1:
                    raise
                self.reporter.note(f"{self._shown(value)}: too small for head, header and some entries")
                return False
            self._add(number, open_artifact(self.partial))
        return self.tries[number].agreement >= self.budget.share

    def _add(self, number: int, artifact: Artifact) -> None:
        """Adds a finished try, and keeps its artifact if it is the smallest that keeps enough."""
        found = self.budget.answers.kept(artifact)
        value, size = self.setting.values[number], artifact.file_bytes()
        self.tries[number] = BudgetTry(value, size, found)
        self.reporter.note(
            f"try {len(self.tries)}: {self._shown(value)} takes {size:,} bytes and keeps {100 * found:.1f} % "
            "of the answers"
        )
        if self._smallest() == number:
            self.partial.replace(self.best)
        if self.file is not None:
            self.file.write(0, self._arrays)

    def _smallest(self) -> int | None:
        """Returns the number of the smallest artifact that keeps enough, None if none does."""
        enough = [number for number, each in self.tries.items() if each.agreement >= self.budget.share]
        return min(enough, key=lambda number: (self.tries[number].bytes, number), default=None)

    def _shown(self, value: Any) -> str:
        return f"{self.setting.name}={value}"

    def _check_arrays(self, stored: Arrays) -> None:
        """Raises: ValueError if an array is missing, or is no list of finished tries."""
        if missing := {"numbers", "bytes", "agreements", "best"} - set(stored):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        numbers = stored["numbers"]
        if not numbers.shape == stored["bytes"].shape == stored["agreements"].shape == (len(numbers),):
            raise ValueError("its tries have numbers, bytes and agreements of different counts")
        if not set(numbers.tolist()) <= set(range(len(self.setting.values))):
            raise ValueError(f"its tries are of other values than the {len(self.setting.values)} to try")

    def _arrays(self) -> Arrays:
        best = np.fromfile(self.best, np.uint8) if self.best.exists() else np.empty(0, np.uint8)
        tries = self.tries.values()
        return {
            "numbers": np.array(list(self.tries), np.int64),
            "bytes": np.array([each.bytes for each in tries], np.int64),
            "agreements": np.array([each.agreement for each in tries]),
            "best": best,
        }
