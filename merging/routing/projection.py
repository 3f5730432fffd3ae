"""Maps features to the points of the search: normalisation, then a learned low-rank metric.

Source: Gao et al. 2026, "Auto-FlexSwitch" (arXiv 2604.28109); docs/methods.md §5.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

Normalisation = Literal["none", "centred", "standardised"]
_SMALLEST = 1e-12
_FLATTEST = 1e-6


@dataclass(frozen=True, eq=False)
class Projection:
    """The map from features to points.

    mean: (width,), subtracted from the features; None for no normalisation. deviation: (width,), divides the
    centred features; None scales each of the `parts`, the columns of one layer, to length 1 instead.
    metric: (rank, width), multiplied by the normalised features; None for the Euclidean metric.
    """

    parts: int = 1
    mean: FloatArray | None = None
    deviation: FloatArray | None = None
    metric: FloatArray | None = None

    @property
    def normalise(self) -> Normalisation:
        """The normalisation's name."""
        if self.mean is None:
            return "none"
        return "centred" if self.deviation is None else "standardised"

    @property
    def width(self) -> int:
        """The width of the features."""
        return int(next(each.shape[-1] for each in (self.mean, self.metric) if each is not None))

    def __call__(self, features: "Tensor") -> "Tensor":
        """Returns the points of features (sample, width), (sample, rank or width) float32, on their device.

        Computed in float64, so that a sample's point does not depend on the batch. Raises: InputError if the
        width is not that of the exemplars.
        """
        if features.shape[1] != self.width:
            raise InputError(
                f"features of width {features.shape[1]}, the query index holds width {self.width}"
            )
        import torch

        points = self.normalised(features.double())
        if self.metric is not None:
            points = points @ torch.tensor(self.metric).to(points).T  # (sample, rank)
        return points.float()

    def normalised(self, features: "Tensor") -> "Tensor":
        """Returns normalised features; before and after: (sample, width) float64."""
        import torch

        if self.mean is None:
            return features
        centred = features - torch.tensor(self.mean).to(features)
        if self.deviation is not None:
            return centred / torch.tensor(self.deviation).to(features)
        parts = centred.reshape(len(centred), self.parts, -1)  # (sample, part, column)
        lengths = torch.linalg.vector_norm(parts, dim=2, keepdim=True)
        scaled: Tensor = parts / lengths.clamp(min=_SMALLEST)
        return scaled.flatten(1)


def fit_normalisation(features: "Tensor", normalise: Normalisation, parts: int) -> Projection | None:
    """Returns the normalisation of exemplars' features (exemplar, width) float64, None for "none"."""
    import torch

    if normalise == "none":
        return None
    mean = features.mean(0)
    if normalise == "centred":
        return Projection(parts, mean.float().numpy())
    variance = (features - mean).square().mean(0)
    floor = _FLATTEST * variance.mean()  # a nearly constant column would dominate the others
    deviation = torch.where(floor > 0, variance.maximum(floor), torch.ones_like(variance)).sqrt()
    return Projection(parts, mean.float().numpy(), deviation.float().numpy())
