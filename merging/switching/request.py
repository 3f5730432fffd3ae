"""What a batch asks of the wrapped module, and how a part of it is asked both ways for a comparison."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.batch_rows import run
from flexswitch.merging.switching.fused_engine import FusedEngine
from flexswitch.merging.switching.generation import forward_passes, sequences

ByPlan = Callable[[FusedEngine, Any, BatchPlan, bool], Any]  # the bool: whether rows may be moved


class Request(NamedTuple):
    """A call of the module that each row of a batch answers under its own mixture.

    kind: what is called, with what else than the batch decides how the module runs; fused: answers a batch;
    checked, alone: what is compared, by the fused engine and by a module with one mixture's weights;
    has_rows: whether that can be asked for some of the rows.
    """

    batch: Any
    kind: tuple[Any, ...]
    fused: ByPlan
    checked: ByPlan
    alone: Callable[[nn.Module, Any], Any]
    has_rows: bool = True


def forward_request(batch: Any) -> Request:
    """Returns the request for the module's output."""

    def fused(engine: FusedEngine, given: Any, plan: BatchPlan, moves: bool) -> Any:
        return engine.answer(given, plan, moves)

    return Request(batch, ("forward",), fused, fused, run)


def generate_request(module: Any, batch: Mapping[str, Tensor], options: Mapping[str, Any]) -> Request:
    """Returns the request for the result of the module's `generate`, of which two tokens are compared."""

    def fused(engine: FusedEngine, given: Any, plan: BatchPlan, moves: bool) -> Any:
        return engine.generate(given, plan, moves, **options)

    def checked(engine: FusedEngine, given: Any, plan: BatchPlan, _: bool) -> Any:
        return engine.call(plan, lambda own: alone(own, given))

    def alone(own: Any, given: Any) -> Any:
        return forward_passes(own, given, options)

    settings = tuple((name, value) for name, value in options.items() if isinstance(value, bool | str))
    kind = ("generate", sequences(module, options) > 1, settings)
    return Request(batch, kind, fused, checked, alone)


def feature_request(batch: Any, call: Callable[[nn.Module], Tensor]) -> Request:
    """Returns the request for features of a batch. call: computes them by a module."""

    def fused(engine: FusedEngine, _: Any, plan: BatchPlan, __: bool) -> Any:
        return engine.call(plan, call)

    return Request(batch, ("features",), fused, fused, lambda own, _: call(own), has_rows=False)
