"""The few trained parameters of each tensor, and Adam."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation

Doubles = NDArray[np.float64]

_BETAS = (0.9, 0.98)
_TINY = 1e-30
_FREE_RANGE = (-12.0, 60.0)


@dataclass(eq=False)
class Parameters:
    """free: (tensor,), whose softplus is a tensor's threshold in multiples of its RMS.

    rows: what each row adds to `free`, for the rows of all tensors, or empty with one threshold per tensor.
    starts: (tensor + 1,), the first row of each tensor in `rows`. log_scales, logits: (tensor, candidate).
    bits: (candidate,).
    """

    bits: NDArray[np.int64]
    starts: NDArray[np.int64]
    free: Doubles
    rows: Doubles
    log_scales: Doubles
    logits: Doubles

    def arrays(self) -> dict[str, Doubles]:
        """Returns the trained arrays by name; they are changed in place."""
        return {"free": self.free, "rows": self.rows, "log_scales": self.log_scales, "logits": self.logits}

    def rows_of(self, number: int) -> slice:
        """Returns the slice of a tensor's rows in `rows`."""
        return slice(int(self.starts[number]), int(self.starts[number + 1]))

    def of_rows(self, tensor: DeltaRows, number: int) -> Doubles:
        """Returns the free thresholds of a tensor's rows, (row,)."""
        own = np.full(len(tensor.rows), self.free[number])
        return own + self.rows[self.rows_of(number)] if len(self.rows) else own

    def thresholds(self, tensor: DeltaRows, number: int) -> FloatArray:
        """Returns a tensor's thresholds on the scale of its weights, (row,)."""
        return (np.logaddexp(0, self.of_rows(tensor, number)) * tensor.rms).astype(np.float32)

    def by_free(self, tensor: DeltaRows, number: int, by_threshold: Doubles) -> Doubles:
        """Returns the derivatives by free thresholds, given those by thresholds, (row,)."""
        slope = tensor.rms / (1 + np.exp(-self.of_rows(tensor, number)))  # softplus' is the sigmoid
        return np.asarray(by_threshold * slope)

    def shares(self, number: int, temperature: float) -> Doubles:
        """Returns π = softmax(logits / temperature) of a tensor, (candidate,)."""
        scaled = self.logits[number] / temperature
        powers = np.exp(scaled - scaled.max())
        return np.asarray(powers / powers.sum())

    def quantised(self, tensors: Sequence[DeltaRows]) -> list[Quantisation]:
        """Returns each tensor's quantisation: hard gates, and the bit-width of the largest share."""
        chosen = self.logits.argmax(1)
        return [
            Quantisation(
                self.thresholds(tensor, number),
                int(self.bits[chosen[number]]),
                float(np.float32(np.exp(self.log_scales[number, chosen[number]]))),
            )
            for number, tensor in enumerate(tensors)
        ]


@dataclass(eq=False)
class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) in float64 over named arrays, its moments by name.

    groups: array name → first entries of its groups. Entries of a group share the mean of their squared
    gradients, so that gradients that are small within their group, which are mostly noise, move little.
    """

    count: int = 0
    moments: dict[str, tuple[Doubles, Doubles]] = field(default_factory=dict)
    groups: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def update(self, arrays: dict[str, Doubles], slopes: dict[str, Doubles], rates: dict[str, float]) -> None:
        """Moves each array in place against its gradient."""
        self.count += 1
        for name, array in arrays.items():
            mean, square = self.moments.setdefault(name, (np.zeros_like(array), np.zeros_like(array)))
            mean += (1 - _BETAS[0]) * (slopes[name] - mean)
            square += (1 - _BETAS[1]) * (self._squares(name, slopes[name]) - square)
            ahead = mean / (1 - _BETAS[0] ** self.count)
            spread = np.sqrt(square / (1 - _BETAS[1] ** self.count))
            array -= rates[name] * ahead / (spread + _TINY)

    def _squares(self, name: str, slopes: Doubles) -> Doubles:
        if name not in self.groups or not len(slopes):
            return slopes**2
        starts = self.groups[name]
        counts = np.diff(starts)
        means = np.add.reduceat(slopes**2, starts[:-1]) / counts
        return np.repeat(means, counts)


def clip_free(free: Doubles) -> None:
    """Clips free thresholds in place to where softplus and its derivative don't vanish or overflow."""
    np.clip(free, *_FREE_RANGE, out=free)


def inverse_softplus(threshold: float) -> float:
    """Returns the number whose softplus is `threshold`, which is positive."""
    return float(threshold + np.log(-np.expm1(-threshold)))
