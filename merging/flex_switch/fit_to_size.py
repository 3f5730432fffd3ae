"""Fits a quantisation to a target size: at most the target, and as near as possible.

All thresholds are multiplied by one factor; the result is stored and measured, and the factor adjusted. Once
most entries are kept, keeping more takes fewer bytes, and the search ends at the largest size found. Where
many entries are equal (rows of an embedding that one step of Adam changed), the size jumps at their
magnitude: then some rows take the threshold above it, and the others the one below.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from flexswitch.merging.flex_switch.delta_rows import Quantisation
from flexswitch.merging.flex_switch.size_estimate import SizeEstimate

_LEAST_SHARE = 0.97  # of the target: guaranteed where enough entries have changed
_ENOUGH = 0.99  # where the search stops
_TRIES = 24
_LEAST_STEP = 0.001  # of the logarithm of the thresholds, until the target lies between two sizes
_GROWTH = 1.5  # of the least step, per try
_RANGE = 20.0  # largest shift tried: everything is kept at one end, nothing at the other
_MOST = 0.9999  # of the largest estimate: counts as reached
_HALVINGS = 40
_SAME = 1e-4  # shifts nearer than this separate equal entries only
_PAST_MOST = 0.98  # of the largest size: a size below this after keeping more ends the search

Size = Callable[[Sequence[Quantisation]], int]


class Found(NamedTuple):
    """The bytes at a shift of the logarithm of all thresholds."""

    shift: float
    size: int


def scaled(quantised: Sequence[Quantisation], by: float) -> list[Quantisation]:
    """Returns the quantisation with all thresholds multiplied by e^by."""
    factor = np.float32(math.exp(by))
    return [replace(kept, thresholds=kept.thresholds * factor) for kept in quantised]


def fit_to_size(
    quantised: Sequence[Quantisation], size: Size, estimate: SizeEstimate, least: int, target: int
) -> tuple[list[Quantisation], int]:
    """Returns the quantisation whose size is nearest below the target, and that size.

    size: measures the bytes of the artifact. estimate: is about proportional to those bytes beyond `least`,
    the bytes of the artifact with nothing kept. The target is larger than `least`.
    """
    below: Found | None = None  # the nearest size at most the target
    above: Found | None = None
    shift, halve = 0.0, False
    for tried in range(_TRIES):
        found = Found(shift, size(scaled(quantised, shift)))
        if found.size <= target:
            if below is not None and above is None and found.size < _PAST_MOST * below.size:
                break
            if below is None or above is not None or found.size >= below.size:
                below = found
            if found.size >= _ENOUGH * target or shift <= -_RANGE:
                break
        else:
            above = found
        if below is not None and above is not None and below.shift - above.shift < _SAME:
            break
        aim = target * (1 + _ENOUGH) / 2
        if below is None or above is None:
            shift = _next_step(found, estimate, least, aim, tried)
        else:  # alternately, as the estimate may be far off
            shift = (below.shift + above.shift) / 2 if halve else _next_between(below, above, estimate, aim)
            halve = not halve
    if below is None:  # the file without kept entries takes nearly all
        nothing = [replace(kept, thresholds=np.full_like(kept.thresholds, np.inf)) for kept in quantised]
        return nothing, size(nothing)
    fitted = scaled(quantised, below.shift)
    if above is None or below.size >= _ENOUGH * target:
        return fitted, below.size
    return _between(fitted, below.size, scaled(quantised, above.shift), size, target)


def _between(
    less: list[Quantisation], found: int, more: list[Quantisation], size: Size, target: int
) -> tuple[list[Quantisation], int]:
    """Returns `more` for as many first rows as the target allows, `less` for the others; and the size."""
    best, rows, beyond = (less, found), 0, 1 + sum(len(kept.thresholds) for kept in less)
    while beyond - rows > 1 and best[1] < _ENOUGH * target:
        middle = (rows + beyond) // 2
        mixed = _mixed(less, more, middle)
        found = size(mixed)
        if found <= target:
            best, rows = (mixed, found), middle
        else:
            beyond = middle
    return best


def _mixed(less: Sequence[Quantisation], more: Sequence[Quantisation], rows: int) -> list[Quantisation]:
    """Returns `more` for the first rows, counted over all tensors, and `less` for the others."""
    mixed = []
    for one, two in zip(less, more, strict=True):
        taken = min(max(rows, 0), len(one.thresholds))
        thresholds = np.concatenate([two.thresholds[:taken], one.thresholds[taken:]])
        mixed.append(replace(one, thresholds=thresholds))
        rows -= len(one.thresholds)
    return mixed


def meets_target(found: int, target: int) -> bool:
    """Returns whether a size is at most the target and at least 97 % of it."""
    return _LEAST_SHARE * target <= found <= target


def _next_step(found: Found, estimate: SizeEstimate, least: int, aim: float, tried: int) -> float:
    """Returns the shift at which the estimate, scaled to the size found, is the aim; at least a step away.

    If the largest estimate is below the aim, the shift keeps everything.
    """
    here, most = estimate(found.shift), _MOST * estimate(-_RANGE)
    if found.size < aim and here >= most:
        return -_RANGE
    wanted = min(here * (aim - least) / max(found.size - least, 1), most)
    step = _shift_of(estimate, wanted, -_RANGE, _RANGE) - found.shift
    shortest = math.copysign(_LEAST_STEP * _GROWTH**tried, found.size - aim)
    return max(-_RANGE, found.shift + (step if step / shortest > 1 else shortest))


def _next_between(below: Found, above: Found, estimate: SizeEstimate, aim: float) -> float:
    """Returns the shift at which the estimate interpolates to the aim, kept away from both ends."""
    part = (aim - below.size) / (above.size - below.size)
    low, high = estimate(below.shift), estimate(above.shift)
    shift = _shift_of(estimate, low + part * (high - low), above.shift, below.shift)
    width = below.shift - above.shift
    return min(max(shift, above.shift + 0.1 * width), below.shift - 0.1 * width)


def _shift_of(estimate: SizeEstimate, wanted: float, low: float, high: float) -> float:
    """Returns the largest shift between `low` and `high` with an estimate of `wanted`, or `low`."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if estimate(middle) >= wanted else (low, middle)
    return low
