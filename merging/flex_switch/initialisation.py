"""The initialisation of a training: which entries are kept at the target size, and their scales.

Sizes are fitted to the real codecs. Scales are larger than those of least squared error, to compensate the
norm of the entries that are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from flexswitch.merging.flex_switch.allocation import allocate, option_bits
from flexswitch.merging.flex_switch.artifact_size import ArtifactSizer
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation
from flexswitch.merging.flex_switch.parameters import Parameters, inverse_softplus
from flexswitch.merging.flex_switch.rate import FIRST_FACTOR
from flexswitch.merging.flex_switch.rate_distortion import RateDistortionTable

Doubles = NDArray[np.float64]

_ROUNDS = 3
# Share kept at first of a tensor that the allocation drops, so that its gates have a slope.
_LEAST_DENSITY = 1e-4
_FIRST_LOGIT = 4.0
_POWERS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_FIRST_POWER = 5  # index of the power that is tried first


def allocated(
    tensors: Sequence[DeltaRows], tables: Sequence[RateDistortionTable], target: float, sizer: ArtifactSizer
) -> tuple[list[Quantisation], Doubles]:
    """Returns the allocation of about `target` bits, and each tensor's rate factor (rate.py).

    The factors are measured by storing the allocation, repeated a few times.
    """
    factors = np.full(len(tensors), FIRST_FACTOR)
    for _ in range(_ROUNDS):
        kept = _keep(tensors, tables, target, factors)
        factors = sizer.factors(kept, factors)
    return kept, factors


def relative(
    tensors: Sequence[DeltaRows], tables: Sequence[RateDistortionTable]
) -> list[RateDistortionTable]:
    """Returns the tables with errors relative to each tensor's mean square."""
    return [
        replace(table, errors=table.errors / tensor.rms**2)
        for tensor, table in zip(tensors, tables, strict=True)
    ]


def uniform(
    tensors: Sequence[DeltaRows],
    tables: Sequence[RateDistortionTable],
    widths: NDArray[np.int64],
    target: float,
    factors: Doubles,
) -> list[Quantisation]:
    """Returns a quantisation of about `target` bits that keeps the same share of every tensor.

    It uses the smallest bit-width at which some share takes that many bits.
    """

    def rows_at(share: float, width: int) -> list[int]:
        return [_at_share(tensor, table, share, width) for tensor, table in zip(tensors, tables, strict=True)]

    def bits_at(share: float, width: int) -> float:
        return sum(
            float(option_bits(table, tensor.entries, factor)[row])
            for tensor, table, factor, row in zip(
                tensors, tables, factors, rows_at(share, width), strict=True
            )
        )

    low = 0.0
    for width in widths.tolist():
        high = 2**width / (1 + 2**width)  # keeping a larger share takes fewer bits, not more
        if bits_at(high, width) > target:
            break
    else:
        low = high = 1.0
    for _ in range(40):
        share = (low + high) / 2
        low, high = (share, high) if bits_at(share, width) <= target else (low, share)
    rows = rows_at(low, width)
    return [
        _quantisation(tensor, table, row) for tensor, table, row in zip(tensors, tables, rows, strict=True)
    ]


def best_norm_compensation(
    tables: Sequence[RateDistortionTable],
    kept: Sequence[Quantisation],
    loss: Callable[[Sequence[Quantisation]], float],
) -> tuple[float, list[Quantisation]]:
    """Returns the least loss of `compensate_norm` over the powers tried, and its quantisation.

    Powers are tried up and down from one that is near the best at most sizes, as long as the loss falls.
    """
    compensated = [compensate_norm(tables, kept, power) for power in _POWERS]
    best, least = _FIRST_POWER, loss(compensated[_FIRST_POWER])
    for step in (1, -1):
        while 0 <= best + step < len(compensated) and (found := loss(compensated[best + step])) < least:
            best, least = best + step, found
    return least, compensated[best]


def compensate_norm(
    tables: Sequence[RateDistortionTable], kept: Sequence[Quantisation], power: float
) -> list[Quantisation]:
    """Returns the quantisation with scales enlarged, to compensate for the entries that are left out.

    Each scale is multiplied by a power of Σ |τ| over the kept Σ |τ|. Power 1 makes both sums equal, as DARE
    does for entries kept at random; power 0 has the least squared error. A tensor that keeps nothing retains
    its scale.
    """
    compensated = []
    for table, own in zip(tables, kept, strict=True):
        if own.thresholds[0] >= table.thresholds[0]:
            compensated.append(own)
            continue
        mass = table.masses[_nearest(table, float(own.thresholds[0]), own.bits)]
        compensated.append(
            replace(own, scale=float(np.float32(own.scale * (table.masses.max() / mass) ** power)))
        )
    return compensated


def initial_parameters(
    tensors: Sequence[DeltaRows],
    tables: Sequence[RateDistortionTable],
    kept: Sequence[Quantisation],
    bits: NDArray[np.int64],
    by_rows: bool,
) -> Parameters:
    """Returns parameters that keep about the same entries.

    Each candidate bit-width has its best scale times the norm compensation of the given quantisation.
    """
    starts = np.concatenate([[0], np.cumsum([len(tensor.rows) for tensor in tensors])]).astype(np.int64)
    free, rows = np.empty(len(tensors)), np.zeros(int(starts[-1]) if by_rows else 0)
    log_scales, logits = np.empty((len(tensors), len(bits))), np.zeros((len(tensors), len(bits)))
    for number, (tensor, table, own) in enumerate(zip(tensors, tables, kept, strict=True)):
        threshold = min(float(own.thresholds[0]), float(table.thresholds[_least_row(tensor, table)]))
        free[number] = inverse_softplus(max(threshold / tensor.rms, 1e-3))
        log_ratio = np.log(own.scale / scale_at(table, float(own.thresholds[0]), own.bits))
        for candidate, width in enumerate(bits.tolist()):
            log_scales[number, candidate] = np.log(scale_at(table, threshold, width)) + log_ratio
            logits[number, candidate] = _FIRST_LOGIT * (width == own.bits)
    return Parameters(bits, starts, free, rows, log_scales, logits)


def _keep(
    tensors: Sequence[DeltaRows], tables: Sequence[RateDistortionTable], target: float, factors: Doubles
) -> list[Quantisation]:
    costs = [
        option_bits(table, tensor.entries, factor)
        for tensor, table, factor in zip(tensors, tables, factors, strict=True)
    ]
    rows = allocate(tables, costs, target)
    return [
        _quantisation(tensor, table, row) for tensor, table, row in zip(tensors, tables, rows, strict=True)
    ]


def _quantisation(tensor: DeltaRows, table: RateDistortionTable, row: int) -> Quantisation:
    thresholds = np.full(len(tensor.rows), table.thresholds[row], np.float32)
    width = int(table.bits[row])
    return Quantisation(thresholds, width, scale_at(table, float(thresholds[0]), width))


def _at_share(tensor: DeltaRows, table: RateDistortionTable, share: float, width: int) -> int:
    """Returns the option of a bit-width that keeps the most entries, at most a share of them."""
    few = (table.kept == 0) | (table.bits == width)
    rows = np.flatnonzero(few & (table.kept <= share * tensor.entries))
    return int(rows[table.kept[rows].argmax()])


def _least_row(tensor: DeltaRows, table: RateDistortionTable) -> int:
    """Returns the option that keeps the fewest entries, but something and at least the least density."""
    rows = np.flatnonzero(table.kept >= max(1.0, _LEAST_DENSITY * tensor.entries))
    return int(rows[table.kept[rows].argmin()])


def scale_at(table: RateDistortionTable, threshold: float, width: int) -> float:
    """Returns the best scale of a bit-width at about this threshold."""
    return float(np.float32(table.scales[_nearest(table, threshold, width)]))


def _nearest(table: RateDistortionTable, threshold: float, width: int) -> int:
    """Returns the option of a bit-width that keeps something and whose threshold is nearest."""
    rows = np.flatnonzero((table.bits == width) & (table.kept > 0))
    return int(rows[np.abs(table.thresholds[rows] - np.float32(threshold)).argmin()])
