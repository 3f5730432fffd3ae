"""Modules that answer samples of several tasks in one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flexswitch.merging.evaluation.evaluate import Bench
from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.examples import Batch
from flexswitch.merging.switching.switched_model import Engine, SwitchedModel

# Entries of config.json that only say how many classes there are and what they are called.
_LABELS = {"num_labels", "id2label", "label2id", "problem_type"}


class Logits(nn.Module):
    """An adapter's logits of a model as a module."""

    def __init__(self, adapter: Adapter, model: nn.Module) -> None:
        super().__init__()
        self.model = model

        def logits(own: nn.Module, batch: Batch) -> Tensor:
            return adapter.logits(own, batch)

        self._logits = logits  # a function, which replicas share: the adapter holds a base and a tokenizer

    def forward(self, **batch: Tensor) -> Tensor:
        """Returns (sample, class)."""
        return self._logits(self.model, batch)


@dataclass(frozen=True)
class Family:
    """Tasks, by their numbers, whose models differ in weights and numbers of classes alone.

    plain: the base under one of their heads; model: the same, switched; has_heads: each row has its own head.
    """

    tasks: Sequence[int]
    plain: Logits
    model: SwitchedModel
    has_heads: bool


def families(bench: Bench, engine: Engine) -> Iterator[Family]:
    """Yields all tasks in as few families as there can be."""
    names = list(bench.vectors)
    for group in _groups(bench):
        task = names[group[0]]
        bench.set_weights(task, bench.vectors[task], 0.0)
        plain, several = Logits(bench.adapter, bench.models[task]).eval(), len(group) > 1
        model = SwitchedModel(
            plain,
            bench.vectors,
            engine=engine,
            heads=several,
            rename=bench.adapter.parameter_name,
            strict=False,
        )
        yield Family(group, plain, model, several)


def _groups(bench: Bench) -> list[list[int]]:
    """Returns tasks of the same config but for labels, and of heads that are linear and of the same width."""
    groups: dict[str, list[int]] = {}
    for number, (task, vector) in enumerate(bench.vectors.items()):
        config = {name: value for name, value in vector.model.config.items() if name not in _LABELS}
        widths = sorted((name, info.shape[1:]) for name, info in vector.extras.items())
        alone = "" if _has_linear_heads(bench, task) else task
        groups.setdefault(repr((sorted(config.items()), widths, alone)), []).append(number)
    return list(groups.values())


def _has_linear_heads(bench: Bench, task: str) -> bool:
    inside = bench.extra_names(task)
    owners = {name.rpartition(".")[0] for name in inside.values()}
    return all(type(bench.models[task].get_submodule(owner)) is nn.Linear for owner in owners)
