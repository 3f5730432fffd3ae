"""How small each stored tensor is: beside its Shannon bound, every codec, and the published form of 2025."""

from dataclasses import dataclass

from flexswitch.codecs.flag4 import Flag4
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.registry import CODECS
from flexswitch.codecs.sparse import SparseStats, shannon_bits
from flexswitch.codecs.storage import store


@dataclass(frozen=True)
class TensorSizes:
    """Sizes of one tensor, or of several together, in bytes.

    shannon: the least for a mask of each tensor's density and its levels, if nothing else were known of it.
    published: the 4-group form of the T-Switch code. codecs: each alone, row flags where they pay.
    """

    entries: int
    kept: int
    stored: int
    shannon: float
    published: int
    codecs: dict[str, int]

    def __add__(self, other: "TensorSizes") -> "TensorSizes":
        return TensorSizes(
            self.entries + other.entries,
            self.kept + other.kept,
            self.stored + other.stored,
            self.shannon + other.shannon,
            self.published + other.published,
            {name: size + other.codecs[name] for name, size in self.codecs.items()},
        )


NOTHING = TensorSizes(0, 0, 0, 0.0, 0, dict.fromkeys(CODECS, 0))


def tensor_sizes(artifact: Artifact, name: str) -> TensorSizes:
    """Returns the sizes of one tensor, each codec's by encoding it. Raises: DecodeError."""
    sparse = artifact.sparse(name)
    codecs = {}
    for codec in CODECS:
        form = store(sparse, codec)
        codecs[codec] = sum(len(block.data) for block in [*form.blocks, *([form.rows] if form.rows else [])])
    return TensorSizes(
        entries=sparse.layout.entries,
        kept=sparse.layout.kept,
        stored=artifact.header.tensors[name].size,
        shannon=shannon_bits(sparse.layout) / 8,
        published=Flag4().estimate_bytes(SparseStats(sparse)),
        codecs=codecs,
    )
