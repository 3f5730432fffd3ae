"""A base model that computes features."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flexswitch.codecs.format.zoo import Zoo
from flexswitch.merging.checkpoints.fingerprint import check_base
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.models.adapters import Adapter, get_adapter

FeatureDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Runner:
    """How a base computes features: by which adapter, on which device, and in which dtype."""

    adapter: Adapter
    device: str = "cpu"
    dtype: FeatureDtype = "float32"


def checked_runner(
    zoo: Zoo,
    base: str | Path,
    adapter: str | None,
    device: str,
    dtype: FeatureDtype = "float32",
    max_length: int | None = None,
) -> Callable[[], Runner]:
    """Checks that a base is a zoo's, and returns a function that opens its runner.

    Features of a file need no runner. adapter: the one that the user gave; max_length: as for `get_adapter`.
    Raises: InputError.
    """
    checkpoint = open_base(base)
    check_base(checkpoint, zoo.record.base, str(zoo.path))
    return lambda: Runner(get_adapter(checkpoint, zoo.record.adapter, adapter, max_length), device, dtype)
