"""Training steps: thresholds, scales and bit-widths by gradient, at a target size.

Each step writes the weights under their gates, runs the parts of a batch forward and backward, and updates
the few parameters by Adam. The size is held in two ways. The gradient of the rate is added with the
multiplier that removes the loss gradient's component along it (least squares over the thresholds), so that
the loss can only fall by moving bits between tensors. One shift of all thresholds corrects what drift
remains.
Source: Gao et al. 2026 (arXiv 2604.28109); docs/methods.md §4.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.compression.plan import Progress
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation
from flexswitch.merging.flex_switch.gated_model import GatedModel, Loss
from flexswitch.merging.flex_switch.gated_tensor import GateCounts, GateGradients, Gates, summed
from flexswitch.merging.flex_switch.parameters import Adam, Parameters, clip_free
from flexswitch.merging.flex_switch.rate import Rate, rate_of

Doubles = NDArray[np.float64]

# The gate's width in multiples of the RMS, and the bit-widths' temperature: at the first and the last step.
_WIDTHS = (0.3, 0.05)
_TEMPERATURES = (1.0, 0.1)
_RATES = {"free": 0.1, "rows": 0.02, "log_scales": 0.05, "logits": 0.1}
_LAST_RATE = 0.02  # of the initial rate, at the last step
_FULL_STEPS = 50  # with fewer, rates shrink in proportion
_HARD_FROM = 0.7  # share of the steps after which each tensor uses its likeliest bit-width only
_FORGETTING = 0.9
_GAIN, _LARGEST_SHIFT = 0.5, 0.1
_UNDER = 0.95  # of the target: below it, bits are not penalised


@dataclass(frozen=True)
class Schedule:
    """steps: in total. target: bits that the rate is held at, or None to weigh it by `multiplier`.

    multiplier: loss per bit. gates_move: whether thresholds are trained. measure_every: number of steps
    between measurements of the real size. settled_bits: those of parts that are not trained, which progress
    counts too.
    """

    steps: int
    target: float | None
    multiplier: float
    gates_move: bool = True
    measure_every: int = 50
    settled_bits: float = 0.0


Batches = Callable[[int], Sequence[Loss]]  # step → losses of parts of its batch, which sum to the batch's
# Quantisation and previous factors → real over estimated bits of each tensor, (tensor,).
Measure = Callable[[Sequence[Quantisation], Doubles], Doubles]


@dataclass(eq=False)
class TrainingState:
    """The state that a step changes, and that a training checkpoint stores.

    factors: (tensor,), see rate.py. step_size: multiplies all learning rates.
    """

    parameters: Parameters
    factors: Doubles
    adam: Adam = field(default_factory=Adam)
    step_size: float = 1.0
    step: int = 0
    slope_product: float = 0.0  # decayed sum over steps of loss gradient · rate gradient
    rate_square: float = 0.0  # the same of rate gradient · rate gradient
    history: list[Progress] = field(default_factory=list)


def check_finite(loss: float, when: str) -> None:
    """Raises: InputError if a loss is infinite or NaN."""
    if not math.isfinite(loss):
        raise InputError(
            f"the loss is {loss} {when}; the fine-tuned model's answers on the exemplars are not finite, or "
            "its weights are huge"
        )


def run_steps(
    state: TrainingState,
    tensors: Sequence[DeltaRows],
    model: GatedModel,
    batches: Batches,
    schedule: Schedule,
    measure: Measure,
    parallel_map: ParallelMap,
    on_step: Callable[[Progress], None],
) -> None:
    """Runs the remaining steps. Raises: InputError if the loss is not finite."""
    while state.step < schedule.steps:
        if state.step and state.step % schedule.measure_every == 0:
            state.factors[:] = measure(state.parameters.quantised(tensors), state.factors)
        on_step(_step(state, tensors, model, batches(state.step), schedule, parallel_map))


def set_gates(
    model: GatedModel, gates: Sequence[Gates], parallel_map: ParallelMap
) -> list[GateCounts | None]:
    """Writes the weights under these gates; returns counts per tensor, None if the model lacks it."""
    model.gates = list(gates)

    def apply(number: int) -> GateCounts | None:
        weights = model.weights[number]
        return None if weights is None else weights.apply(gates[number])

    return parallel_map(apply, len(gates))


def hard_gates(tensors: Sequence[DeltaRows], quantised: Sequence[Quantisation]) -> list[Gates]:
    """Returns the gates that give exactly the quantised weights."""
    one = np.ones(1, np.float32)
    return [
        Gates(
            kept.thresholds,
            _WIDTHS[1] * tensor.rms,
            np.array([kept.bits]),
            np.array([kept.scale], np.float32),
            one,
        )
        for tensor, kept in zip(tensors, quantised, strict=True)
    ]


def _step(
    state: TrainingState,
    tensors: Sequence[DeltaRows],
    model: GatedModel,
    losses: Sequence[Loss],
    schedule: Schedule,
    parallel_map: ParallelMap,
) -> Progress:
    parameters, share = state.parameters, state.step / schedule.steps
    gates = [_gates(parameters, tensor, number, share) for number, tensor in enumerate(tensors)]
    kept = set_gates(model, gates, parallel_map)
    found = model.backward_all(losses, parallel_map)
    loss = sum(value for value, _ in found)
    check_finite(loss, f"in step {state.step + 1}")
    slopes = [summed([of_units[number] for _, of_units in found]) for number in range(len(tensors))]
    rates = [
        _rate(parameters, gates[number], kept[number], tensor, state.factors[number])
        for number, tensor in enumerate(tensors)
    ]
    _move(state, tensors, gates, slopes, rates, schedule)
    bits = schedule.settled_bits + sum(rate.bits for rate in rates if rate is not None)
    progress = Progress(state.step, loss, bits)
    state.history.append(progress)
    return progress


def _gates(parameters: Parameters, tensor: DeltaRows, number: int, share: float) -> Gates:
    """Returns a tensor's gates when this share of the steps is done."""
    thresholds, width = parameters.thresholds(tensor, number), _annealed(_WIDTHS, share) * tensor.rms
    scales = np.exp(parameters.log_scales[number]).astype(np.float32)
    if share >= _HARD_FROM:
        likeliest = slice(best := int(parameters.logits[number].argmax()), best + 1)
        return Gates(thresholds, width, parameters.bits[likeliest], scales[likeliest], np.ones(1, np.float32))
    shares = parameters.shares(number, _annealed(_TEMPERATURES, share))
    return Gates(thresholds, width, parameters.bits, scales, shares.astype(np.float32))


def _annealed(ends: tuple[float, float], share: float) -> float:
    return ends[0] * math.pow(ends[1] / ends[0], share)


def _rate(
    parameters: Parameters, gates: Gates, kept: GateCounts | None, tensor: DeltaRows, factor: float
) -> Rate | None:
    if kept is None:
        return None
    shares = gates.shares.astype(np.float64)
    return rate_of(kept.kept, kept.slopes, tensor.columns, gates.bits, shares, factor)


def _move(
    state: TrainingState,
    tensors: Sequence[DeltaRows],
    gates: Sequence[Gates],
    slopes: Sequence[GateGradients | None],
    rates: Sequence[Rate | None],
    schedule: Schedule,
) -> None:
    """Updates the parameters by one step; tensors without a gradient do not change."""
    parameters = state.parameters
    loss = {name: np.zeros_like(array) for name, array in parameters.arrays().items()}
    bits = {name: np.zeros_like(array) for name, array in parameters.arrays().items()}
    moved = np.zeros(len(tensors), np.bool_)
    for number, (tensor, slope, rate) in enumerate(zip(tensors, slopes, rates, strict=True)):
        if slope is None or rate is None:
            continue
        moved[number] = True
        for table, by_threshold in ((loss, slope.by_threshold), (bits, rate.by_threshold)):
            by_row = parameters.by_free(tensor, number, by_threshold)
            table["free"][number] = by_row.sum()
            if len(parameters.rows):
                table["rows"][parameters.rows_of(number)] = by_row
        chosen = np.isin(parameters.bits, gates[number].bits)  # candidates that are mixed
        loss["log_scales"][number, chosen] = slope.by_scale * gates[number].scales
        shares = gates[number].shares.astype(np.float64)
        for table, by_share in ((loss, slope.by_share), (bits, rate.by_share)):
            table["logits"][number, chosen] = shares * (by_share - shares @ by_share)
    found = sum(rate.bits for rate in rates if rate is not None)
    multiplier = _multiplier(state, schedule, loss["free"], bits["free"], found)
    total = {name: loss[name] + multiplier * bits[name] for name in loss}
    decay = _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * state.step / schedule.steps)) / 2
    decay *= min(1.0, schedule.steps / _FULL_STEPS) * state.step_size
    learning_rates = {name: rate * decay for name, rate in _RATES.items()}
    if not schedule.gates_move:
        learning_rates["free"] = learning_rates["rows"] = 0.0
    state.adam.update(parameters.arrays(), total, learning_rates)
    if schedule.target is not None and schedule.gates_move:
        parameters.free[moved] += _shift(found, schedule.target, float(bits["free"].sum()))
    clip_free(parameters.free)
    state.step += 1


def _multiplier(
    state: TrainingState, schedule: Schedule, loss: Doubles, bits: Doubles, found: float
) -> float:
    """Returns the weight of the rate in the loss. loss, bits: gradients by free thresholds, (tensor,)."""
    if schedule.target is None:
        return schedule.multiplier
    state.slope_product = _FORGETTING * state.slope_product + float(loss @ bits)
    state.rate_square = _FORGETTING * state.rate_square + float(bits @ bits)
    if found < _UNDER * schedule.target:
        return 0.0
    return max(0.0, -state.slope_product / max(state.rate_square, 1e-300))


def _shift(bits: float, target: float, slope: float) -> float:
    """Returns the shift of all free thresholds that brings the rate half way to the target.

    It is 0 if most entries are kept, so that keeping more takes fewer bits: the target is out of reach.
    """
    if slope >= 0:
        return 0.0
    wanted = _GAIN * (target - bits) / slope
    return float(np.clip(wanted, -_LARGEST_SHIFT, _LARGEST_SHIFT))
