"""Where learning starts: a share of every unit at the size asked for, fitted to the real codecs.

What is kept of a unit stands for all of it: its scale is larger than that of least squared error.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.flex_switch.allocation import allocate, choice_bits
from flexswitch.merging.flex_switch.artifact_size import ArtifactSizer
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation
from flexswitch.merging.flex_switch.parameters import Parameters, inverse_softplus
from flexswitch.merging.flex_switch.rate import FIRST_FACTOR
from flexswitch.merging.flex_switch.rate_distortion import RateDistortionTable, rate_distortion_table

Doubles = NDArray[np.float64]

_ROUNDS = 3
# A unit that the allocation drops starts by keeping this share, so that its gates have a slope.
_LEAST_DENSITY = 1e-4
_FIRST_LOGIT = 4.0
_POWERS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_FIRST_POWER = 5  # place of the one that is tried first


def all_choices(
    units: Sequence[DeltaRows], bits: NDArray[np.int64], each: ParallelMap
) -> list[RateDistortionTable]:
    """Returns every unit's choices of density and bit-width."""
    return each(lambda number: rate_distortion_table(units[number].delta, bits), len(units))


def allocated(
    units: Sequence[DeltaRows], choices: Sequence[RateDistortionTable], target: float, packer: ArtifactSizer
) -> tuple[list[Quantisation], Doubles]:
    """Returns what the allocation keeps in about `target` bits, and each unit's factor (rate.py).

    The factors come from storing what is kept, a few times over.
    """
    factors = np.full(len(units), FIRST_FACTOR)
    for _ in range(_ROUNDS):
        kept = _keep(units, choices, target, factors)
        factors = packer.factors(kept, factors)
    return kept, factors


def relative(units: Sequence[DeltaRows], choices: Sequence[RateDistortionTable]) -> list[RateDistortionTable]:
    """Returns the choices with errors in units of each tensor's mean square."""
    return [
        replace(each, errors=each.errors / unit.rms**2) for unit, each in zip(units, choices, strict=True)
    ]


def uniform(
    units: Sequence[DeltaRows],
    choices: Sequence[RateDistortionTable],
    widths: NDArray[np.int64],
    target: float,
    factors: Doubles,
) -> list[Quantisation]:
    """Returns the same share kept of every unit in about `target` bits.

    In the least of the bit-widths, or in the next one where no share of those takes so many.
    """

    def rows_at(share: float, width: int) -> list[int]:
        return [_at_share(unit, each, share, width) for unit, each in zip(units, choices, strict=True)]

    def bits_at(share: float, width: int) -> float:
        return sum(
            float(choice_bits(each, unit.entries, factor)[row])
            for unit, each, factor, row in zip(units, choices, factors, rows_at(share, width), strict=True)
        )

    low = 0.0
    for width in widths.tolist():
        high = 2**width / (1 + 2**width)  # to keep a larger share takes fewer bits, not more
        if bits_at(high, width) > target:
            break
    else:
        low = high = 1.0
    for _ in range(40):
        share = (low + high) / 2
        low, high = (share, high) if bits_at(share, width) <= target else (low, share)
    rows = rows_at(low, width)
    return [_hardened(unit, each, row) for unit, each, row in zip(units, choices, rows, strict=True)]


def best_norm_compensation(
    choices: Sequence[RateDistortionTable],
    kept: Sequence[Quantisation],
    loss: Callable[[Sequence[Quantisation]], float],
) -> tuple[float, list[Quantisation]]:
    """Returns the least loss of `compensate_norm` over the powers tried, and what is kept then.

    Powers are tried up and down from one that is near the best at most sizes, while the loss falls.
    """
    grown = [compensate_norm(choices, kept, power) for power in _POWERS]
    best, least = _FIRST_POWER, loss(grown[_FIRST_POWER])
    for step in (1, -1):
        while 0 <= best + step < len(grown) and (found := loss(grown[best + step])) < least:
            best, least = best + step, found
    return least, grown[best]


def compensate_norm(
    choices: Sequence[RateDistortionTable], kept: Sequence[Quantisation], power: float
) -> list[Quantisation]:
    """Returns the same with larger scales, to make up for what is left out.

    Each grows by a power of Σ |τ| over that of what is kept: by its first, both sums would be equal, as DARE
    has it for entries kept at random; by 0, the squared error is the least. What keeps nothing stands for
    nothing, and has the scale that it would begin with.
    """
    grown = []
    for each, own in zip(choices, kept, strict=True):
        if own.thresholds[0] >= each.thresholds[0]:
            grown.append(own)
            continue
        mass = each.masses[_nearest(each, float(own.thresholds[0]), own.bits)]
        grown.append(replace(own, scale=float(np.float32(own.scale * (each.masses.max() / mass) ** power))))
    return grown


def initial_parameters(
    units: Sequence[DeltaRows],
    choices: Sequence[RateDistortionTable],
    kept: Sequence[Quantisation],
    bits: NDArray[np.int64],
    by_rows: bool,
) -> Parameters:
    """Returns the parameters that keep about what is kept, each candidate with its own best scale.

    That scale is as many times larger as the one of what is kept is than its own best.
    """
    starts = np.concatenate([[0], np.cumsum([len(unit.rows) for unit in units])]).astype(np.int64)
    free, rows = np.empty(len(units)), np.zeros(int(starts[-1]) if by_rows else 0)
    log_scales, logits = np.empty((len(units), len(bits))), np.zeros((len(units), len(bits)))
    for number, (unit, each, own) in enumerate(zip(units, choices, kept, strict=True)):
        threshold = min(float(own.thresholds[0]), float(each.thresholds[_least_row(unit, each)]))
        free[number] = inverse_softplus(max(threshold / unit.rms, 1e-3))
        growth = np.log(own.scale / scale_at(each, float(own.thresholds[0]), own.bits))
        for candidate, width in enumerate(bits.tolist()):
            log_scales[number, candidate] = np.log(scale_at(each, threshold, width)) + growth
            logits[number, candidate] = _FIRST_LOGIT * (width == own.bits)
    return Parameters(bits, starts, free, rows, log_scales, logits)


def _keep(
    units: Sequence[DeltaRows], choices: Sequence[RateDistortionTable], target: float, factors: Doubles
) -> list[Quantisation]:
    costs = [
        choice_bits(each, unit.entries, factor)
        for unit, each, factor in zip(units, choices, factors, strict=True)
    ]
    rows = allocate(choices, costs, target)
    return [_hardened(unit, each, row) for unit, each, row in zip(units, choices, rows, strict=True)]


def _hardened(unit: DeltaRows, choices: RateDistortionTable, row: int) -> Quantisation:
    thresholds = np.full(len(unit.rows), choices.thresholds[row], np.float32)
    width = int(choices.bits[row])
    return Quantisation(thresholds, width, scale_at(choices, float(thresholds[0]), width))


def _at_share(unit: DeltaRows, choices: RateDistortionTable, share: float, width: int) -> int:
    """Returns the row of the choice of that bit-width that keeps no more than a share of the entries."""
    few = (choices.kept == 0) | (choices.bits == width)
    rows = np.flatnonzero(few & (choices.kept <= share * unit.entries))
    return int(rows[choices.kept[rows].argmax()])


def _least_row(unit: DeltaRows, choices: RateDistortionTable) -> int:
    """Returns the row of the first choice that keeps something, and the least share."""
    rows = np.flatnonzero(choices.kept >= max(1.0, _LEAST_DENSITY * unit.entries))
    return int(rows[choices.kept[rows].argmin()])


def scale_at(choices: RateDistortionTable, threshold: float, width: int) -> float:
    """Returns the best scale of a bit-width where about this threshold is kept."""
    return float(np.float32(choices.scales[_nearest(choices, threshold, width)]))


def _nearest(choices: RateDistortionTable, threshold: float, width: int) -> int:
    """Returns the row of the choice of that bit-width that keeps something, at about this threshold."""
    rows = np.flatnonzero((choices.bits == width) & (choices.kept > 0))
    return int(rows[np.abs(choices.thresholds[rows] - np.float32(threshold)).argmin()])
