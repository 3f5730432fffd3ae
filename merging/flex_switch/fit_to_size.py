"""Fits what is kept to the size that was asked for: at most that, and as near as the codecs' steps allow.

All thresholds are multiplied by one factor; what is kept is stored, measured, and the factor moved. Once most
entries are kept, to keep more of them takes fewer bytes, and the search ends at the most that it found. Where
many entries are equal (rows of an embedding that one step of Adam changed), the size jumps at their
threshold: then some rows take the threshold above, and the others the one below.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from flexswitch.merging.flex_switch.delta_rows import Quantisation
from flexswitch.merging.flex_switch.size_estimate import SizeEstimate

_LEAST_SHARE = 0.97  # of the target: what is promised
_ENOUGH = 0.99  # where the search stops
_TRIES = 24
_LEAST_STEP = 0.001  # of the logarithm of the thresholds, before the target lies between two sizes
_GROWTH = 1.5  # of that, from try to try
_RANGE = 20.0  # shifts that are tried: everything is kept at one end, nothing at the other
_MOST = 0.9999  # of the most that is forecast: where it counts as reached
_HALVINGS = 40
_SAME = 1e-4  # shifts that are nearer than this part only what is equal
_PAST_MOST = 0.98  # of the largest size: where so little is found by keeping more, no more is to be had

Size = Callable[[Sequence[Quantisation]], int]


class Found(NamedTuple):
    """The bytes found at a shift of the logarithm of all thresholds."""

    shift: float
    size: int


def scaled(quantised: Sequence[Quantisation], by: float) -> list[Quantisation]:
    """Returns the same with all thresholds multiplied by e^by."""
    factor = np.float32(math.exp(by))
    return [replace(kept, thresholds=kept.thresholds * factor) for kept in quantised]


def fit_to_size(
    quantised: Sequence[Quantisation], size: Size, size_estimate: SizeEstimate, least: int, target: int
) -> tuple[list[Quantisation], int]:
    """Returns what is kept at the size nearest below the target, and that size.

    size: the bytes of the artifact. forecast: how they will change, in proportion, but for the `least` that
    the artifact takes with nothing kept. The target is more than that.
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
            shift = _next_step(found, size_estimate, least, aim, tried)
        else:  # by turns, as the forecast may be far off
            shift = (
                (below.shift + above.shift) / 2 if halve else _next_between(below, above, size_estimate, aim)
            )
            halve = not halve
    if below is None:  # the file's own parts take nearly all
        nothing = [replace(kept, thresholds=np.full_like(kept.thresholds, np.inf)) for kept in quantised]
        return nothing, size(nothing)
    fitted = scaled(quantised, below.shift)
    if above is None or below.size >= _ENOUGH * target:
        return fitted, below.size
    return _between(fitted, below.size, scaled(quantised, above.shift), size, target)


def _between(
    less: list[Quantisation], found: int, more: list[Quantisation], size: Size, target: int
) -> tuple[list[Quantisation], int]:
    """Returns the first rows by the thresholds that keep more, as many as the target takes; and the size."""
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
    """Returns `more` for the first rows, counted over all units, and `less` for the others."""
    mixed = []
    for one, two in zip(less, more, strict=True):
        taken = min(max(rows, 0), len(one.thresholds))
        thresholds = np.concatenate([two.thresholds[:taken], one.thresholds[taken:]])
        mixed.append(replace(one, thresholds=thresholds))
        rows -= len(one.thresholds)
    return mixed


def meets_target(found: int, target: int) -> bool:
    """Returns whether a size is the target as it is promised: at most that, and at least 97 % of it."""
    return _LEAST_SHARE * target <= found <= target


def _next_step(found: Found, size_estimate: SizeEstimate, least: int, aim: float, tried: int) -> float:
    """Returns where the forecast, as many times as large as was found, is the aim; a step away at least.

    Where the most is too little, everything is tried.
    """
    here, most = size_estimate(found.shift), _MOST * size_estimate(-_RANGE)
    if found.size < aim and here >= most:
        return -_RANGE
    wanted = min(here * (aim - least) / max(found.size - least, 1), most)
    step = _shift_of(size_estimate, wanted, -_RANGE, _RANGE) - found.shift
    shortest = math.copysign(_LEAST_STEP * _GROWTH**tried, found.size - aim)
    return max(-_RANGE, found.shift + (step if step / shortest > 1 else shortest))


def _next_between(below: Found, above: Found, size_estimate: SizeEstimate, aim: float) -> float:
    """Returns where the forecast lies as the aim does between the two, but never near an end."""
    part = (aim - below.size) / (above.size - below.size)
    low, high = size_estimate(below.shift), size_estimate(above.shift)
    shift = _shift_of(size_estimate, low + part * (high - low), above.shift, below.shift)
    width = below.shift - above.shift
    return min(max(shift, above.shift + 0.1 * width), below.shift - 0.1 * width)


def _shift_of(size_estimate: SizeEstimate, wanted: float, low: float, high: float) -> float:
    """Returns the largest shift between the two where so much is forecast, or the first of them."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if size_estimate(middle) >= wanted else (low, middle)
    return low
