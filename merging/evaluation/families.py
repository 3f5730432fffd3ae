"""Models that compute the logits of several tasks' samples in one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flexswitch.merging.evaluation.task_models import TaskModels
from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.examples import Batch
from flexswitch.merging.switching.loaded_zoo import Engine
from flexswitch.merging.switching.switched_model import SwitchedModel

# Entries of config.json that only describe the classes.
_LABELS = {"num_labels", "id2label", "label2id", "problem_type"}


class Logits(nn.Module):
    """A module that computes the adapter's logits of a model."""

    def __init__(self, adapter: Adapter, model: nn.Module) -> None:
        super().__init__()
        self.model = model

        def logits(own: nn.Module, batch: Batch) -> Tensor:
            return adapter.logits(own, batch)

        self._logits = logits  # a function, so that copies of the module share the adapter

    def forward(self, **batch: Tensor) -> Tensor:
        """Returns (sample, class)."""
        return self._logits(self.model, batch)

    def generate(self, **options: Any) -> Any:
        """Returns what a language model's own `generate` does."""
        return getattr(self.model, "generate")(**options)  # noqa: B009


@dataclass(frozen=True)
class Family:
    """Tasks, by their numbers, whose models differ only in their weights and numbers of classes.

    plain: the base with the head of one task; model: the same with switched weights; has_heads: whether each
    sample uses the head of its own task.
    """

    tasks: Sequence[int]
    plain: Logits
    model: SwitchedModel
    has_heads: bool


def families(task_models: TaskModels, engine: Engine) -> Iterator[Family]:
    """Yields families that together hold every task once, as few as possible."""
    names = list(task_models.vectors)
    for group in _groups(task_models):
        task = names[group[0]]
        task_models.set_weights(task, task_models.vectors[task], 0.0)
        plain, several = Logits(task_models.adapter, task_models.models[task]).eval(), len(group) > 1
        model = SwitchedModel(
            plain,
            task_models.vectors,
            engine=engine,
            heads=(task_models.heads or True) if several else False,
            rename=task_models.adapter.parameter_name,
            strict=False,
            check_base=False,  # it was made from the base, which has been checked
        )
        own = any(task_models.extra_names(names[number]) for number in group)
        yield Family(group, plain, model, several and own)


def _groups(task_models: TaskModels) -> list[list[int]]:
    """Groups the tasks whose configs agree except for labels, with linear heads of equal width."""
    groups: dict[str, list[int]] = {}
    for number, (task, vector) in enumerate(task_models.vectors.items()):
        config = {name: value for name, value in vector.model.config.items() if name not in _LABELS}
        widths = sorted((name, info.shape[1:]) for name, info in task_models.extras(task).items())
        alone = "" if _has_linear_heads(task_models, task) else task
        groups.setdefault(repr((sorted(config.items()), widths, alone)), []).append(number)
    return list(groups.values())


def _has_linear_heads(task_models: TaskModels, task: str) -> bool:
    inside = task_models.extra_names(task)
    owners = {name.rpartition(".")[0] for name in inside.values()}
    return all(type(task_models.models[task].get_submodule(owner)) is nn.Linear for owner in owners)
