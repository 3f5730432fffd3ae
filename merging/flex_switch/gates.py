"""Compiled passes over one tensor's delta: apply its gates, and reduce a gradient to the gates.

An entry of the delta τ passes its gate where |τ| is above its row's threshold, and then takes the value
v = Σ_b π_b·Q_b(τ), a mixture over candidate bit-widths b. Forward the gate is hard; backward it is the
sigmoid σ((|τ| − threshold) / width), whose slope is the kernel of these passes (straight-through).
Thresholds and widths are on the scale of the weights here.
Source: Gao et al. 2026 (arXiv 2604.28109), LGS and BAS; docs/methods.md §4.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

_CHUNK = 1024
_LANES = 8
_FAR = np.float32(16)  # widths from the threshold at which the kernel is taken as 0; it is below 2e-7 there


@compiled
def apply_gates(
    base: FloatArray,
    delta: FloatArray,
    rows: Integers,
    columns: int,
    thresholds: FloatArray,
    width: np.float32,
    bits: Integers,
    scales: FloatArray,
    shares: FloatArray,
    weights: FloatArray,
    kept: Integers,
    slopes: Doubles,
) -> None:
    """Writes base + gated values to `weights`, and each row's number of kept entries and slope of its gates.

    base, delta: (row · columns,) float32, the rows that changed. rows: (row,), their numbers in `weights`,
    the whole tensor. thresholds: (row,). bits, scales, shares: (candidate,). kept, slopes: (row,), the number
    of kept entries, and −Σ ∂gate/∂threshold.
    """
    kernel = np.empty(_CHUNK, np.float32)
    sums = np.zeros(_LANES, np.float64)
    inverse = np.divide(np.float32(1), width)
    for row in range(thresholds.size):
        threshold, count, slope = thresholds[row], 0, np.float64(0)
        offset = (rows[row] - row) * columns
        for start in range(row * columns, (row + 1) * columns, _CHUNK):
            size = min(_CHUNK, (row + 1) * columns - start)
            place = start + offset
            for index in range(size):
                weights[place + index] = base[start + index]
                value = delta[start + index]
                if abs(value) > threshold:
                    count += 1
                    mixed = np.float32(0)
                    for candidate in range(bits.size):
                        mixed += shares[candidate] * _quantised(value, bits[candidate], scales[candidate])
                    weights[place + index] += mixed
            _fill_kernel(delta[start : start + size], threshold, inverse, kernel[:size])
            slope += _sum(kernel[:size], sums)
        kept[row] = count
        slopes[row] = slope * inverse


@compiled
def reduce_gradient(
    gradient: FloatArray,
    delta: FloatArray,
    rows: Integers,
    columns: int,
    thresholds: FloatArray,
    width: np.float32,
    bits: Integers,
    scales: FloatArray,
    shares: FloatArray,
    by_threshold: Doubles,
    by_scale: Doubles,
    by_share: Doubles,
) -> None:
    """Adds the derivatives of a loss by thresholds, scales and shares, given the gradient of the weights.

    gradient: the whole tensor, flat. delta, rows and the rest: see `apply_gates`. by_threshold: (row,).
    by_scale, by_share: (candidate,).
    """
    kernel, products = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    sums = np.zeros(_LANES, np.float64)
    inverse = np.divide(np.float32(1), width)
    for row in range(thresholds.size):
        threshold, total = thresholds[row], np.float64(0)
        offset = (rows[row] - row) * columns
        for start in range(row * columns, (row + 1) * columns, _CHUNK):
            size = min(_CHUNK, (row + 1) * columns - start)
            place = start + offset
            values = delta[start : start + size]
            products[:size] = 0
            for candidate in range(bits.size):
                _add_quantised(values, bits[candidate], scales[candidate], shares[candidate], products)
            _fill_kernel(values, threshold, inverse, kernel[:size])
            for index in range(size):
                products[index] *= kernel[index] * gradient[place + index]
            total += _sum(products[:size], sums)
            for index in range(size):
                value = values[index]
                if abs(value) > threshold:
                    slope = np.float64(gradient[place + index])
                    for candidate in range(bits.size):
                        quantised = _quantised(value, bits[candidate], scales[candidate])
                        turn = _by_scale(value, quantised, bits[candidate], scales[candidate])
                        by_share[candidate] += slope * quantised
                        by_scale[candidate] += slope * shares[candidate] * turn
        by_threshold[row] -= total * inverse


@compiled
def _quantised(value: np.float32, bits: int, scale: np.float32) -> Any:
    """Returns the nearest of the 2^bits evenly spaced values in [−scale, scale], which exclude zero."""
    if bits == 1:
        return scale if value > 0 else -scale
    steps = np.float32((1 << bits) - 1)
    level = np.floor(value * np.divide(steps, scale + scale) + (steps + np.float32(1)) * np.float32(0.5))
    level = min(max(level, np.float32(0)), steps)
    return scale * np.divide(np.float32(2) * level - steps, steps)


@compiled
def _add_quantised(
    values: FloatArray, bits: int, scale: np.float32, share: np.float32, sums: FloatArray
) -> None:
    """Adds share · Q_bits(value) to each sum; `_quantised` without a branch inside the loop."""
    if bits == 1:
        size = scale * share
        for index in range(values.size):
            sums[index] += size if values[index] > 0 else -size
        return
    steps = np.float32((1 << bits) - 1)
    slope, middle = np.divide(steps, scale + scale), (steps + np.float32(1)) * np.float32(0.5)
    step = np.divide(scale * share, steps)
    for index in range(values.size):
        level = np.floor(values[index] * slope + middle)
        level = level if level > np.float32(0) else np.float32(0)
        level = level if level < steps else steps
        sums[index] += step * (level + level - steps)


@compiled
def _by_scale(value: np.float32, quantised: np.float32, bits: int, scale: np.float32) -> Any:
    """Returns the derivative of `_quantised` with respect to the scale, rounding being straight-through."""
    if bits == 1 or abs(value) >= scale:
        return np.divide(quantised, scale)
    return np.divide(quantised - value, scale)


@compiled
def _fill_kernel(values: FloatArray, threshold: np.float32, inverse: np.float32, kernel: FloatArray) -> None:
    """Writes σ'(x) = e / (1 + e)², e = exp(−x), for each value's distance x from the threshold in widths.

    It is 0 from `_FAR` on, and for entries that did not change, which pass no gate.
    """
    one = np.float32(1)
    for index in range(values.size):
        value = values[index]
        kernel[index] = abs((abs(value) - threshold) * inverse) if value != 0 else _FAR
    for index in range(kernel.size):
        distance = kernel[index]
        # exp(−x/32) by its series up to the seventh power, then squared five times: no branch, no table.
        part = (distance if distance < _FAR else _FAR) * np.float32(-1 / 32)
        power = part * np.float32(1 / 5040) + np.float32(1 / 720)
        power = power * part + np.float32(1 / 120)
        power = power * part + np.float32(1 / 24)
        power = power * part + np.float32(1 / 6)
        power = power * part + np.float32(1 / 2)
        power = power * part + one
        power = power * part + one
        power = power * power
        power = power * power
        power = power * power
        power = power * power
        power = power * power
        slope = np.divide(power, (one + power) * (one + power))  # as `/`, but without a check for zero
        kernel[index] = slope if distance < _FAR else np.float32(0)


@compiled
def _sum(values: FloatArray, sums: Doubles) -> np.float64:
    """Returns the sum in float64, in an order that depends only on the number of values."""
    sums[:] = 0
    whole = values.size // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            sums[lane] += np.float64(values[start + lane])
    for index in range(whole, values.size):
        sums[index - whole] += np.float64(values[index])
    total = np.float64(0)
    for lane in range(_LANES):
        total += sums[lane]
    return total
