"""One tensor's weights under its gates: written before a forward pass, reduced after a backward pass.

On the CPU the passes are compiled; on other devices they are torch operations on a few rows at a time.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.flex_switch.delta_rows import DeltaRows
from flexswitch.merging.flex_switch.gates import apply_gates, reduce_gradient

Doubles = NDArray[np.float64]

_DEVICE_ENTRIES = 1 << 24  # processed at once on a GPU


class Gates(NamedTuple):
    """The gates of a tensor. thresholds: (row,); width: of the gate; both on the scale of the weights.

    bits, scales, shares: (candidate,), of the bit-widths that are mixed.
    """

    thresholds: FloatArray
    width: float
    bits: NDArray[np.int64]
    scales: FloatArray
    shares: FloatArray


class GateCounts(NamedTuple):
    """Per row, (row,): the number of entries that pass the gates, and −Σ ∂gate/∂threshold."""

    kept: NDArray[np.int64]
    slopes: Doubles


class GateGradients(NamedTuple):
    """Derivatives of a loss with respect to thresholds (row,), scales and shares (candidate,)."""

    by_threshold: Doubles
    by_scale: Doubles
    by_share: Doubles


def summed(slopes: Sequence[GateGradients | None]) -> GateGradients | None:
    """Returns the sum of those that are there, in order, or None."""
    present = [slope for slope in slopes if slope is not None]
    return GateGradients(*(np.sum(part, axis=0) for part in zip(*present, strict=True))) if present else None


class GatedTensor(Protocol):
    """The weights of one tensor."""

    def apply(self, gates: Gates) -> GateCounts:
        """Writes base + gated values into the weights, in place."""

    def reduce(self, gates: Gates, gradient: Tensor) -> GateGradients:
        """Returns the gradient of the gates that were applied last, given that of the weights."""


def gated_weights(tensor: DeltaRows, weights: Tensor) -> GatedTensor:
    """Returns a tensor's weights under gates. weights: the model's own tensor, with the base's values."""
    return (CompiledGatedTensor if weights.device.type == "cpu" else DeviceGatedTensor)(tensor, weights)


class _CompiledPasses:
    """Compiled passes; float32 on the CPU."""

    def __init__(self, tensor: DeltaRows) -> None:
        self._tensor = tensor

    def _rows_of(self, weights: FloatArray) -> FloatArray:
        """Returns a copy of the changed rows of a tensor, both flat."""
        return weights.reshape(-1, self._tensor.columns)[self._tensor.rows].reshape(-1)

    def _write(self, gates: Gates, base: FloatArray, weights: FloatArray) -> GateCounts:
        tensor = self._tensor
        kept, slopes = np.empty(len(tensor.rows), np.int64), np.empty(len(tensor.rows))
        apply_gates(
            base, tensor.delta, tensor.rows, tensor.columns, gates.thresholds, np.float32(gates.width),
            gates.bits, gates.scales, gates.shares, weights, kept, slopes,
        )  # fmt: skip
        return GateCounts(kept, slopes)

    def reduce(self, gates: Gates, gradient: Tensor) -> GateGradients:
        """Returns the gradient of the gates that were applied last, given that of the weights."""
        tensor, candidates = self._tensor, len(gates.bits)
        slopes = GateGradients(np.zeros(len(tensor.rows)), np.zeros(candidates), np.zeros(candidates))
        if not gradient.is_sparse:
            flat = gradient.contiguous().view(-1).numpy()
            self._reduce(gates, flat, tensor.delta, tensor.rows, gates.thresholds, slopes)
            return slopes
        values, places, own = _touched_rows(gradient, tensor)
        delta = tensor.delta.reshape(-1, tensor.columns)[own].reshape(-1)
        of_own = slopes._replace(by_threshold=np.zeros(len(own)))
        self._reduce(gates, values, delta, places, gates.thresholds[own], of_own)
        slopes.by_threshold[own] = of_own.by_threshold
        return slopes

    def _reduce(
        self,
        gates: Gates,
        gradient: FloatArray,
        delta: FloatArray,
        rows: NDArray[np.int64],
        thresholds: FloatArray,
        slopes: GateGradients,
    ) -> None:
        reduce_gradient(
            gradient, delta, rows, self._tensor.columns, thresholds, np.float32(gates.width), gates.bits,
            gates.scales, gates.shares, *slopes,
        )  # fmt: skip


class CompiledGatedTensor(_CompiledPasses):
    """Weights that are held, on the CPU."""

    def __init__(self, tensor: DeltaRows, weights: Tensor) -> None:
        super().__init__(tensor)
        self._weights = weights.detach().view(-1).numpy()
        self._base = self._rows_of(self._weights)

    def apply(self, gates: Gates) -> GateCounts:
        """Writes base + gated values into the weights, in place."""
        return self._write(gates, self._base, self._weights)


class StreamedGatedTensor(_CompiledPasses):
    """Weights that are made for each use. base: returns the base's, a tensor that the caller may change."""

    def __init__(self, tensor: DeltaRows, base: Callable[[], Tensor]) -> None:
        super().__init__(tensor)
        self._base = base

    def apply(self, gates: Gates) -> GateCounts:
        """Returns the counts alone: the weights are made again when they are used."""
        return self._made(gates)[1]

    def weights(self, gates: Gates) -> Tensor:
        """Returns base + gated values."""
        return self._made(gates)[0]

    def _made(self, gates: Gates) -> tuple[Tensor, GateCounts]:
        made = self._base()
        flat = made.view(-1).numpy()
        whole = len(self._tensor.rows) * self._tensor.columns == len(flat)
        return made, self._write(gates, flat if whole else self._rows_of(flat), flat)


class DeviceGatedTensor:
    """Uses torch operations on the weights' device; sums are float64."""

    def __init__(self, tensor: DeltaRows, weights: Tensor) -> None:
        self._weights = weights.detach().view(-1, tensor.columns)
        self._rows = torch.from_numpy(tensor.rows).to(weights.device)
        self._delta = torch.from_numpy(tensor.delta).view(-1, tensor.columns).to(weights.device)
        self._base = self._weights[self._rows]
        height = max(1, _DEVICE_ENTRIES // tensor.columns)
        self._parts = [slice(start, start + height) for start in range(0, len(tensor.rows), height)]

    def apply(self, gates: Gates) -> GateCounts:
        kept, slopes = [], []
        for part in self._parts:
            delta, distances, passes = self._gated(gates, part)
            values = sum(share * _quantised(delta, bits, scale) for bits, scale, share in _candidates(gates))
            self._weights[self._rows[part]] = self._base[part] + torch.where(passes, values, 0)
            kept.append(passes.sum(1))
            slopes.append(_kernel(distances).sum(1, dtype=torch.float64) / gates.width)
        return GateCounts(torch.cat(kept).cpu().numpy(), torch.cat(slopes).cpu().numpy())

    def reduce(self, gates: Gates, gradient: Tensor) -> GateGradients:
        by_row = (gradient.to_dense() if gradient.is_sparse else gradient).reshape(self._weights.shape)
        by_threshold, by_scale, by_share = [], [], []
        for part in self._parts:
            delta, distances, passes = self._gated(gates, part)
            slope = by_row[self._rows[part]]
            quantised = [_quantised(delta, bits, scale) for bits, scale, _ in _candidates(gates)]
            values = sum(share * value for value, share in zip(quantised, gates.shares.tolist(), strict=True))
            weighted = (slope * values * _kernel(distances)).sum(1, dtype=torch.float64)
            by_threshold.append(-weighted / gates.width)
            passed = torch.where(passes, slope, 0)
            by_share.append(torch.stack([(passed * value).sum(dtype=torch.float64) for value in quantised]))
            turns = [
                share * (passed * _by_scale(delta, value, bits, scale)).sum(dtype=torch.float64)
                for value, (bits, scale, share) in zip(quantised, _candidates(gates), strict=True)
            ]
            by_scale.append(torch.stack(turns))
        return GateGradients(
            torch.cat(by_threshold).cpu().numpy(),
            torch.stack(by_scale).sum(0).cpu().numpy(),
            torch.stack(by_share).sum(0).cpu().numpy(),
        )

    def _gated(self, gates: Gates, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Returns some rows' delta, its distances from the threshold in widths, and which entries pass."""
        delta = self._delta[part]
        thresholds = torch.from_numpy(gates.thresholds[part]).to(delta.device)[:, None]
        distances = torch.where(delta == 0, torch.inf, (delta.abs() - thresholds).abs() / gates.width)
        return delta, distances, delta.abs() > thresholds


def _touched_rows(
    gradient: Tensor, tensor: DeltaRows
) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """Returns a sparse gradient's values, and the places of the changed rows in it and in the tensor."""
    whole = gradient.coalesce()
    touched = whole.indices()[0].numpy()
    own = np.searchsorted(tensor.rows, touched)
    known = (own < len(tensor.rows)) & (tensor.rows[np.minimum(own, len(tensor.rows) - 1)] == touched)
    values: FloatArray = whole.values().contiguous().view(-1).numpy()
    return values, np.flatnonzero(known), own[known]


def _candidates(gates: Gates) -> list[tuple[int, float, float]]:
    return list(zip(gates.bits.tolist(), gates.scales.tolist(), gates.shares.tolist(), strict=True))


def _quantised(values: Tensor, bits: int, scale: float) -> Tensor:
    if bits == 1:
        return torch.where(values > 0, scale, -scale)
    steps = (1 << bits) - 1
    levels = (values * (steps / (2 * scale)) + (steps + 1) / 2).floor().clamp(0, steps)
    return (2 * levels - steps) * (scale / steps)


def _by_scale(values: Tensor, quantised: Tensor, bits: int, scale: float) -> Tensor:
    turns = quantised / scale
    if bits == 1:
        return turns
    return torch.where(values.abs() >= scale, turns, turns - values / scale)


def _kernel(distances: Tensor) -> Tensor:
    """Returns the derivative of the sigmoid."""
    e = torch.exp(-distances)
    return e / (1 + e).square()
