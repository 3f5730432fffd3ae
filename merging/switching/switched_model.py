"""A model whose every row is answered under its own mixture of tasks.

How a batch is answered:

1. Each row's weights come from the caller, or from a router (zoo_router.py asks a zoo's query index).
2. batch_plan.py lists the rows of each task and the distinct mixtures, and padding.py the tokens to skip.
3. fused_engine.py brings the rows of one mixture together, runs the module once, with layers of its own
   (fused_layers.py), and puts the rows back:
   - A mixture that saves time by it (cost_model.py) has weights of its own, θ + λ Σ w τ (held_weights.py):
     its tokens take one product with each matrix (held_products.py). The engine "merged" does so for all.
   - One that seldom comes up takes a product with the weights of each of its tasks, where that saves time.
   - The other rows take the products with the base, to which those with the tasks' delta matrices are added
     (delta_products.py). The engine "fused" does so for all.
   - A module whose layers cannot answer rows together, as they are not given rows first or keep a state, is
     run once for each mixture, with its weights, by grouped_engine.py. engine_check.py finds out.
4. heads.py ends each row with the head of its task, and own_buffers.py gives layers its buffers.

A delta matrix is decoded once (task_deltas.py), in the form that multiplies fastest (delta_matrix.py).

Source: docs/methods.md §3; Qi et al. 2025 (arXiv 2412.00054), Auto-Switch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError, UsageError, unknown_name
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.zoo import Zoo, read_zoo
from flexswitch.merging.models.head_files import Heads, read_head_files
from flexswitch.merging.switching.argument_check import check_arguments
from flexswitch.merging.switching.averaged_module import AveragedModule
from flexswitch.merging.switching.batch_plan import BatchPlan, batch_plan
from flexswitch.merging.switching.batch_rows import row_count
from flexswitch.merging.switching.cost_model import CostModel, Costs, costs_here
from flexswitch.merging.switching.engine_check import EngineCheck
from flexswitch.merging.switching.fused_engine import FusedEngine
from flexswitch.merging.switching.generation import (
    new_tokens,
    prompts_by_name,
    sequences,
    with_options_of_rows,
)
from flexswitch.merging.switching.grouped_engine import GroupedEngine
from flexswitch.merging.switching.heads import Head, read_heads, task_of_rows
from flexswitch.merging.switching.held_weights import HeldWeights, is_small
from flexswitch.merging.switching.loaded_zoo import Engine, LoadedZoo, Router
from flexswitch.merging.switching.module_check import check_module
from flexswitch.merging.switching.own_buffers import read_buffers
from flexswitch.merging.switching.padding import token_mask
from flexswitch.merging.switching.request import forward_request, generate_request
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.switching.tensor_names import open_vectors
from flexswitch.merging.task_vectors.task_vector import TaskVector

if TYPE_CHECKING:
    from flexswitch.merging.routing.voting_options import VotingOptions

ENGINES = ("auto", "fused", "merged", "grouped")
_CACHE_BYTES = 4 << 30


class SwitchedModel(nn.Module):
    """Wraps a module that holds the base's weights, without changing it. For inference only; thread-safe.

    Row i of the output equals the forward pass of θ + λ Σ_k w_k(x_i) τ̂_k on row i alone, within the
    dtype's tolerance, whatever else is in the batch. Where the tasks have heads for a layer of the
    module, row i is answered with the head of the caller's task, or of its largest weight; rows of a head
    with fewer classes than another's end in -inf. Buffers that tasks change, such as running statistics, are
    that task's too; rows of no task have the base's. The output for padding, by a batch's "attention_mask"
    (row, token), is undefined: the fused engine skips much of it. That engine is for modules whose layers are
    given the rows of a batch first, or their tokens row by row: some rows of the first batch of each kind
    (its arguments, one token a row or more, padding, one mixture or several) are answered by it and by the
    module with each mixture's weights. Where the outputs differ, "auto" uses the grouped engine, and "fused"
    and "merged" are refused. A module that remembers earlier batches is not for it. Move the module to its
    device and dtype before wrapping it.
    """

    def __init__(
        self,
        module: nn.Module,
        zoo: Mapping[str, Artifact | TaskVector],
        router: Router | None = None,
        *,
        routing: "VotingOptions | None" = None,
        lambda_: float = 1.0,
        engine: Engine = "auto",
        heads: bool | str | Path | Heads = True,
        cache_bytes: int = _CACHE_BYTES,
        costs: Costs | None = None,
        rename: Callable[[str], str] = str,
        strict: bool = True,
        base: str | Path | None = None,
        check_base: bool = True,
    ) -> None:
        """Reads the tasks' names and heads; their deltas are decoded when they are first needed.

        router: returns the weights of a batch, (row, task); None for the zoo's query index, which is asked
        with the options `routing`, None for the defaults. engine: "auto" for the cheapest one by `costs`,
        or its name (the module's docstring describes them). cache_bytes: for the tasks' delta matrices, for
        mixtures' own weights, and for those of the grouped engine, each. costs: None for those
        of this kind of processor. rename: returns the module's name for a tensor of a fine-tuned
        checkpoint, up to a prefix. strict: whether the module must have all tensors that the tasks change.
        base: the base's path or hub id, to compare the module's tensors with; None for where transformers
        loaded the module from. check_base: whether the module's tensors are checked to be the base's, once.

        Raises: InputError where the module lacks a changed tensor or does not hold the base, or a head does
        not fit.
        """
        super().__init__()
        check_arguments(module, zoo, router, lambda_, cache_bytes, rename, base)
        self._checked: str | None = None  # the fingerprint of the base that the module holds
        if not isinstance(engine, str) or engine not in ENGINES:
            raise UsageError(unknown_name("engine", str(engine), ENGINES))
        self.module = module
        self._router, self._routing, self._lambda, self._engine = router, routing, lambda_, engine
        self._heads, self._cache_bytes, self._costs = heads, cache_bytes, costs or costs_here()
        self._rename, self._strict, self._base, self._check_base = rename, strict, base, check_base
        self._loaded = self._load(zoo)

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the weights' columns."""
        return list(self._loaded.tasks)

    @property
    def cached_bytes(self) -> int:
        """The memory that the tasks' delta matrices and mixtures' own weights take now."""
        loaded = self._loaded
        return loaded.deltas.nbytes + loaded.held.nbytes + loaded.grouped.held.nbytes

    def refresh(self) -> None:
        """Reads the zoo's directory again, with the tasks that were added, changed or removed.

        Batches in progress are answered with the zoo as it was. Raises: InputError where the model was made
        without a directory, ArtifactError.
        """
        zoo = self._loaded.zoo
        if not isinstance(zoo, Zoo):
            raise InputError("refresh() reads a zoo's directory again, and this model was made without one")
        self._loaded = read_zoo(zoo.path, self._load)

    def route(self, batch: Any, texts: Sequence[str] | None = None) -> Tensor:
        """Returns the router's weights for a batch, (row, task); texts: as for `forward`.

        Raises: InputError.
        """
        return self._loaded.weights(batch, texts)

    @torch.inference_mode(False)
    @torch.no_grad()
    def forward(
        self,
        batch: Any,
        weights: Tensor | None = None,
        heads: Any = None,
        texts: Sequence[str] | None = None,
    ) -> Any:
        """Returns the module's output; `weights` (row, task) replaces the router's.

        batch: a tensor, or a dict of tensors, the keyword arguments of the module; the first dimension is
        over rows, in the output too. heads: a task's name for each row. texts: the text of each row, for a
        zoo indexed with features of the texts' shape. Raises: InputError without weights and router, or on
        weights of another shape.
        """
        loaded = self._loaded
        plan = self._plan(loaded, batch, weights, heads, texts)
        request = forward_request(batch)
        return loaded.answered(self._engine, request, plan, lambda: loaded.grouped.answer(batch, plan))

    @torch.inference_mode(False)
    @torch.no_grad()
    def warm_up(self, batch: Any) -> None:
        """Answers a batch under all tasks at once, and its rows under different ones.

        So all decoding and compiling is done, and the comparison for batches of its kind.
        """
        loaded, count = self._loaded, row_count(batch)
        shares = torch.full((count, len(loaded.tasks)), 1 / max(1, len(loaded.tasks)))
        plan = self._plan(loaded, batch, shares, None)
        if self._engine == "auto" and loaded.check.manner(forward_request(batch), plan) is not None:
            loaded.fused.answer(batch, plan, moves=False)
        self(batch, weights=shares)
        if loaded.tasks:
            self(batch, weights=torch.eye(len(loaded.tasks))[torch.arange(count) % len(loaded.tasks)])

    @torch.inference_mode(False)
    @torch.no_grad()
    def generate(
        self,
        batch: Mapping[str, Tensor],
        weights: Tensor | None = None,
        texts: Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Returns the result of the module's `generate`; each sequence keeps its prompt's weights.

        batch: the prompts, as keyword arguments of `generate`; texts: as for `forward`; options: the other
        arguments.
        """
        loaded, batch = self._loaded, prompts_by_name(self.module, batch)
        batch, options = with_options_of_rows(batch, options, row_count(batch))
        plan = self._plan(loaded, batch, weights, None, texts)
        if sequences(self.module, options) > 1:
            plan = plan.without_padding()  # a prompt has as many sequences as another may have tokens
        request, steps = (
            generate_request(self.module, batch, options),
            new_tokens(self.module, batch, options),
        )

        def grouped() -> Any:
            return loaded.grouped.generate(batch, plan, **options)

        return loaded.answered(self._engine, request, plan, grouped, steps)

    def _load(self, zoo: Mapping[str, Artifact | TaskVector]) -> LoadedZoo:
        tasks = list(zoo)
        vectors, names = open_vectors(self.module, zoo, self._rename, self._strict)
        if self._check_base and vectors:
            self._checked = check_module(self.module, vectors, names, self._rename, self._base, self._checked)
        heads: dict[str, list[Head]] = {}
        if self._heads:
            given = self._heads if isinstance(self._heads, str | Path | Mapping) else {}
            files = given if isinstance(given, Mapping) else read_head_files(Path(given), tasks)
            own = [files.get(task, {}) for task in tasks]
            heads = read_heads(self.module, vectors, own, self._rename)
        buffers = read_buffers(self.module, vectors, self._rename)
        fused = FusedEngine(self.module, names, heads, buffers)
        state = self.module.state_dict()
        base_rms = {
            name: float(state[inside].float().square().mean().sqrt()) for name, inside in names.items()
        }
        device = _device_of(self.module)
        deltas = TaskDeltas(vectors, base_rms, fused.transposed, self._cache_bytes, device)
        grouped = GroupedEngine(self.module, names, heads, buffers, deltas, self._cache_bytes)
        cost, small = self._costs.new_mixture, is_small(fused.own)
        if small:
            cost = min(cost, self._costs.new_small_mixture)
        by_columns = set(fused.matrices) - fused.transposed
        held = HeldWeights(fused.own, deltas, self._cache_bytes, cost, by_columns)
        cost_model = CostModel(fused.matrices, self._costs, sums=not small)
        router, check = self._router, EngineCheck(fused, grouped)
        if router is None and isinstance(zoo, Zoo) and zoo.record.index is not None:
            from flexswitch.merging.switching.zoo_router import ZooRouter

            average = AveragedModule(tasks, deltas, fused, grouped, check)
            router = ZooRouter(self.module, zoo, self._routing, average)
        has_heads = bool(heads or buffers)
        return LoadedZoo(zoo, tasks, deltas, fused, held, grouped, cost_model, has_heads, router, check)

    def _plan(
        self,
        loaded: LoadedZoo,
        batch: Any,
        weights: Tensor | None,
        heads: Any,
        texts: Sequence[str] | None = None,
    ) -> BatchPlan:
        weights = torch.as_tensor(loaded.weights(batch, texts) if weights is None else weights)
        count = row_count(batch)
        if weights.shape != (count, len(loaded.tasks)):
            raise InputError(
                f"the weights have the shape {list(weights.shape)}, expected (row, task) = "
                f"{[count, len(loaded.tasks)]}"
            )
        if not torch.isfinite(weights).all():
            raise InputError("the weights hold a number that is not finite")
        shares = weights.detach().to("cpu", torch.float32).numpy()
        head_of_row = None
        if loaded.has_heads:
            head_of_row = task_of_rows(heads, loaded.tasks, shares)
        elif heads is not None:
            raise InputError("heads= names tasks, but the module has no layer that the tasks have heads for")
        factors = np.float32(self._lambda) * shares
        mask = token_mask(batch, self.module)
        return batch_plan(factors, loaded.deltas, head_of_row, mask, float(np.float32(self._lambda)))


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
