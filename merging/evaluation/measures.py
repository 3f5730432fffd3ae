"""How a task is scored: by which metric, and against which labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flexswitch.merging.evaluation.metrics import Metric, metric_of
from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.answers import answers_of
from flexswitch.merging.models.examples import Batch, Examples, Inputs
from flexswitch.merging.models.labels import checked_labels, expected_answers
from flexswitch.merging.models.outputs import OutputKind, own_columns


@dataclass(frozen=True, eq=False)
class Measure:
    """The metric of one task, the kind of its outputs, and the labels of its examples.

    columns: of its model; logits may have more, those of another task's head.
    """

    metric: Metric
    kind: OutputKind
    columns: int
    labels: Sequence[Any]

    def answers(self, adapter: Adapter, logits: Tensor, batch: Batch, inputs: Inputs) -> list[Any]:
        """Returns the answers of a task's samples from the logits of a batch of their inputs."""
        return answers_of(adapter, self.kind, own_columns(self.kind, logits, self.columns), batch, inputs)

    def score(self, answers: Sequence[Any]) -> float:
        """Returns the value of the metric; answers: those of all examples, in their order."""
        return self.metric.score(answers, self.labels)


def measure_of(
    task: str, kind: OutputKind, logits: Tensor, examples: Examples, wanted: str | None
) -> Measure:
    """Returns the measure of a task; without labels where these are the fine-tuned model's answers.

    logits: of some samples; wanted: the name of a metric, None for the kind's default.
    Raises: UsageError, InputError.
    """
    columns = logits.shape[-1]
    metric = metric_of(kind, wanted, task, examples.are_apart and examples.labels is not None)
    labels: Sequence[Any] = [None] * len(examples)
    if metric.generated:
        labels = expected_answers(examples)
    elif metric.labelled:
        labels = checked_labels(kind, examples, columns)
    return Measure(metric, kind, columns, labels)
