"""The options for building a query index."""

from dataclasses import dataclass
from typing import Literal

from flexswitch.codecs.errors import check_choice
from flexswitch.merging.models.device import check_device
from flexswitch.merging.models.feature_spec import AUTO, is_auto, is_file, parse_feature_spec
from flexswitch.merging.models.runner import FeatureDtype
from flexswitch.merging.routing.projection import Normalisation

Metric = Literal["learned", "euclidean"]


@dataclass(frozen=True)
class IndexOptions:
    """How a query index is built; the fields are options of `flexswitch index`.

    features: a feature spec or the path of a feature file; rank: of the learned metric.
    Raises: UsageError on an unknown name; InputError if the device is missing.
    """

    features: str = AUTO
    dtype: FeatureDtype = "float32"
    per_task: int = 100
    seed: int = 0
    normalise: Normalisation = "centred"
    metric: Metric = "learned"
    rank: int = 32
    adapter: str | None = None
    device: str = "cpu"
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_choice("--metric", self.metric, Metric)
        check_choice("--normalise", self.normalise, Normalisation)
        check_choice("--feature-dtype", self.dtype, FeatureDtype)
        check_device(self.device)
        if not is_auto(self.features) and not is_file(self.features):
            parse_feature_spec(self.features)

    @property
    def learned_rank(self) -> int | None:
        """The rank of the learned metric, None for the Euclidean one."""
        return self.rank if self.metric == "learned" else None
