"""A model whose every sample answers under its own mixture of tasks.

Source: methods, §3; Qi et al. 2025 (arXiv 2412.00054), Auto-SwitchedLayer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError, UsageError, unknown_name
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.zoo import Zoo, open_zoo
from flexswitch.merging.models.loading import names_inside
from flexswitch.merging.switching.batch_plan import BatchPlan, batch_plan
from flexswitch.merging.switching.cost_model import Choice, CostModel, Costs, costs_here
from flexswitch.merging.switching.csr import Ids
from flexswitch.merging.switching.fused_engine import FusedEngine
from flexswitch.merging.switching.grouped_engine import GroupedEngine
from flexswitch.merging.switching.heads import read_heads
from flexswitch.merging.switching.merged_weights import MergedWeights
from flexswitch.merging.switching.padding import marks_of
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.switching.zoo_router import Lazy, Routing, ZooRouter
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import TaskVector

Router = Callable[..., Tensor]  # a batch, and its texts where the caller gives them → (sample, task)
Engine = Literal["auto", "fused", "merged", "grouped"]

ENGINES = ("auto", "fused", "merged", "grouped")
_CACHE_BYTES = 4 << 30


class _Loaded(NamedTuple):
    """A zoo as it was read: replaced as a whole, so that a batch never sees half of another."""

    zoo: Mapping[str, Artifact | TaskVector]
    tasks: list[str]
    units: TaskDeltas
    fused: FusedEngine
    merged: MergedWeights
    grouped: GroupedEngine
    chooser: CostModel
    has_heads: bool
    router: Router | None


class SwitchedModel(nn.Module):
    """Wraps a module that holds the base's weights; the module itself is left as it is.

    Row i of the output equals the forward pass of θ + λ Σ_k w_k(x_i) τ̂_k on row i alone, within the
    dtype's tolerance, whatever else is in the batch. Where tasks keep heads of their own that the module has
    a layer for, row i is answered under the head of the caller's task, or of its largest weight; rows of a
    head with fewer classes than another's end in -inf. Of padding, where a batch has an "attention_mask"
    (row, token), nothing is promised: the fused engine leaves it out, on the CPU between layers too, where
    there is much of it. That engine takes every layer's first dimension to be over the rows of the batch, or
    over their tokens row by row; two rows of the first batch tell whether it is, and a module that puts
    tokens first is left to the grouped engine, or refused. For inference: no gradients pass. It may be called
    from several threads. Move the module to its device and dtype before it is wrapped.
    """

    def __init__(
        self,
        module: nn.Module,
        zoo: Mapping[str, Artifact | TaskVector],
        router: Router | None = None,
        *,
        routing: Routing = Routing(),  # noqa: B008  # frozen
        lambda_: float = 1.0,
        engine: Engine = "auto",
        heads: bool = True,
        cache_bytes: int = _CACHE_BYTES,
        costs: Costs | None = None,
        rename: Callable[[str], str] = str,
        strict: bool = True,
    ) -> None:
        """router: gives a batch its weights, (row, task); without one a zoo's query index does, by `routing`.

        engine: "fused" adds the tasks' parts in every layer; "merged" multiplies there by matrices θ + τ, of
        as many tasks as fit; "grouped" answers rows of equal weights together by modules that hold them;
        "auto" takes the cheapest one by `costs`, None for those of the kind of processor at hand.
        cache_bytes: of the tasks' decoded parts, again of such matrices (on the CPU alone), and again of the
        grouped engine's modules. rename: the module's name for a tensor of a fine-tuned checkpoint, but for a
        prefix; strict: whether it must have all that the tasks change.

        Raises: InputError where the module lacks what the tasks change, or a head does not fit.
        """
        super().__init__()
        if engine not in ENGINES:
            raise UsageError(unknown_name("engine", engine, ENGINES))
        self.module = module
        self._router, self._routing, self._lambda, self._engine = router, routing, lambda_, engine
        self._heads, self._cache_bytes, self._costs = heads, cache_bytes, costs or costs_here()
        self._rename, self._strict = rename, strict
        self._loaded = self._load(zoo)

    @property
    def tasks(self) -> list[str]:
        """The names of the weights' columns."""
        return list(self._loaded.tasks)

    def refresh(self) -> None:
        """Reads the zoo's directory again, and takes over tasks that were added, changed or removed.

        Batches that are being answered meanwhile see the zoo as it was. Raises: InputError where the tasks
        did not come from a directory, ArtifactError.
        """
        zoo = self._loaded.zoo
        if not isinstance(zoo, Zoo):
            raise InputError("refresh() reads a zoo's directory again, and this model was made without one")
        self._loaded = self._load(open_zoo(zoo.path))

    def route(self, batch: Any, texts: Sequence[str] | None = None) -> Tensor:
        """Returns the weights that a batch gets of itself, (sample, task); texts: see `forward`.

        Raises: InputError.
        """
        return _route(self._loaded, batch, texts)

    @torch.inference_mode(False)
    @torch.no_grad()
    def forward(
        self,
        batch: Any,
        weights: Tensor | None = None,
        heads: Any = None,
        texts: Sequence[str] | None = None,
    ) -> Any:
        """Returns the module's output; `weights` (sample, task) overrides the router's.

        batch: a tensor, or a dict of tensors that become keyword arguments; the first dimension is over
        samples, in the output too. heads: a task's name for each sample. texts: what the samples were made
        of, for a zoo that was indexed with features of their shape. Raises: InputError without weights and
        router, or on weights of another shape.
        """
        loaded = self._loaded
        plan = self._plan(loaded, batch, weights, heads, texts)
        choice = self._choice(loaded, batch, plan)
        if not choice.fused:
            return loaded.grouped.answer(batch, plan)
        plan.merge(loaded.merged.of(choice.merged))
        return loaded.fused.answer(batch, plan)

    @torch.inference_mode(False)
    @torch.no_grad()
    def warm_up(self, batch: Any) -> None:
        """Answers a batch by all tasks and every engine, so that nothing is decoded or compiled later on."""
        loaded = self._loaded
        shares = torch.full((_row_count(batch), len(loaded.tasks)), 1 / max(1, len(loaded.tasks)))
        plan = self._plan(loaded, batch, shares, None)
        for engine in (loaded.fused, loaded.grouped) if self._engine == "auto" else ():
            engine.answer(batch, plan)
        self(batch, weights=shares)

    @torch.inference_mode(False)
    @torch.no_grad()
    def generate(
        self,
        batch: Mapping[str, Tensor],
        weights: Tensor | None = None,
        texts: Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Returns what the module's `generate` does; a sequence keeps the weights of its prompt throughout.

        batch: prompts, as `generate` takes them by name; texts: see `forward`; options: its other arguments.
        Always fused.
        """
        loaded = self._loaded
        return loaded.fused.generate(batch, self._plan(loaded, batch, weights, None, texts), **options)

    def _load(self, zoo: Mapping[str, Artifact | TaskVector]) -> _Loaded:
        tasks = list(zoo)
        vectors: list[TaskVector] = [
            ArtifactVector(task) if isinstance(task, Artifact) else task for task in zoo.values()
        ]
        names = _names(self.module, vectors, self._rename, self._strict)
        heads = read_heads(self.module, vectors, self._rename) if self._heads else {}
        fused = FusedEngine(self.module, names, heads)
        state = self.module.state_dict()
        sizes = {unit: float(state[inside].float().square().mean().sqrt()) for unit, inside in names.items()}
        units = TaskDeltas(vectors, sizes, fused.turned, self._cache_bytes, _device_of(self.module))
        grouped = GroupedEngine(self.module, names, heads, units, self._cache_bytes)
        merged = MergedWeights(
            fused.products,
            units,
            self._cache_bytes if _device_of(self.module).type == "cpu" else 0,
            self._costs.turn,
        )
        chooser = CostModel(fused.products, grouped.most, merged.most, self._costs)
        router = self._router
        if router is None and isinstance(zoo, Zoo) and zoo.record.index is not None:
            average = _Average(tasks, units, fused)
            router = Lazy(lambda: ZooRouter(self.module, zoo, self._routing, average))
        return _Loaded(zoo, tasks, units, fused, merged, grouped, chooser, bool(heads), router)

    def _plan(
        self,
        loaded: _Loaded,
        batch: Any,
        weights: Tensor | None,
        heads: Any,
        texts: Sequence[str] | None = None,
    ) -> BatchPlan:
        weights = _route(loaded, batch, texts) if weights is None else weights
        count = _row_count(batch)
        if weights.shape != (count, len(loaded.tasks)):
            raise InputError(
                f"the weights have the shape {list(weights.shape)}, expected (sample, task) = "
                f"{[count, len(loaded.tasks)]}"
            )
        shares = weights.detach().to("cpu", torch.float32).numpy()
        numbers = None
        if loaded.has_heads:
            numbers = shares.argmax(1) if heads is None else _numbers(heads, loaded.tasks, count)
        elif heads is not None:
            raise InputError("heads were named, but the module has no layer for heads of the tasks' own")
        return batch_plan(
            np.float32(self._lambda) * shares, loaded.units, numbers, marks_of(batch, self.module)
        )

    def _choice(self, loaded: _Loaded, batch: Any, plan: BatchPlan) -> Choice:
        if not plan.count or self._engine == "fused":
            return Choice(True, {})
        if self._engine == "merged":
            return Choice(True, {task.number: float("inf") for task in plan.tasks})
        if self._engine == "grouped" or loaded.fused.misfit(batch) is not None:
            return Choice(False, {})
        first = batch if isinstance(batch, Tensor) else next(iter(batch.values()))
        return loaded.chooser.choose(plan, tokens=first.shape[1] if first.dim() > 1 else 1)


def _route(loaded: _Loaded, batch: Any, texts: Sequence[str] | None) -> Tensor:
    if loaded.router is None:
        raise InputError(
            "nothing chooses the tasks: give weights=, or wrap the module with a zoo that `flexswitch index` "
            "has indexed, or with a router"
        )
    return loaded.router(batch) if texts is None else loaded.router(batch, texts)


@dataclass(frozen=True, eq=False)
class _Average:
    """What a call gives on the module under the average of some tasks."""

    tasks: list[str]
    units: TaskDeltas
    fused: FusedEngine

    def __call__(self, batch: Any, names: list[str], call: Callable[[nn.Module], Tensor]) -> Tensor:
        count = _row_count(batch)
        shares = np.zeros((count, len(self.tasks)), np.float32)
        shares[:, [self.tasks.index(name) for name in names]] = 1 / len(names)
        return self.fused.follow(
            batch, batch_plan(shares, self.units, None, marks_of(batch, self.fused.module)), call
        )


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))


def _row_count(batch: Any) -> int:
    return len(batch if isinstance(batch, Tensor) else next(iter(batch.values())))


def _numbers(heads: Any, tasks: list[str], count: int) -> Ids:
    """Returns the tasks' numbers. Raises: InputError on an unknown one, or where it is not one a sample."""
    for task in heads:
        if task not in tasks:
            raise InputError(f"heads: {unknown_name('task', task, tasks)}")
    if len(heads) != count:
        raise InputError(f"heads names {len(heads)} tasks, expected {count}, one a sample")
    return np.array([tasks.index(task) for task in heads], np.int64)


def _names(
    module: nn.Module, vectors: list[TaskVector], rename: Callable[[str], str], strict: bool
) -> dict[str, str]:
    """Returns the module's name of each unit. Raises: InputError where it has none of that shape."""
    shapes = {name: info.shape for vector in vectors for name, info in sorted(vector.tensors.items())}
    own = module.state_dict()
    names: dict[str, str] = {}
    for vector in vectors:
        named = {name: rename(vector.model.finetuned_name(name)) for name in vector.tensors}
        inside = names_inside(module, list(named.values()))
        names |= {name: inside[other] for name, other in named.items() if other in inside}
    for name, shape in shapes.items():
        if name not in names and not strict:
            continue
        if name not in names:
            raise InputError(f"the module has no parameter '{name}', which the zoo's tasks change")
        found = list(own[names[name]].shape)
        if found != list(shape):
            raise InputError(
                f"the module's parameter '{names[name]}' has the shape {found}, the zoo's tasks change one "
                f"of shape {list(shape)}"
            )
    return names
