"""Compares the stored size of tensors with their Shannon bound, with every codec and with the 2025 code."""

from dataclasses import dataclass

from flexswitch.codecs.flag4 import Flag4
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.records import PartRecord
from flexswitch.codecs.registry import CODECS
from flexswitch.codecs.sparse import SparseStats, SparseTensor, shannon_bits
from flexswitch.codecs.storage import store


@dataclass(frozen=True)
class TensorSizes:
    """Sizes in bytes of one tensor, or of several tensors in total.

    shannon: the bound for a random mask of each tensor's density and random levels. published: the format of
    the published T-Switch code (`flag4`). codecs: if only this codec were used, with row flags if they help.
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
    """Returns the sizes of one tensor, by encoding it with each codec. Raises: DecodeError."""
    parts = artifact.header.tensors[name].parts
    return sum((_sizes(artifact.sparse(name, number), part) for number, part in enumerate(parts)), NOTHING)


def _sizes(sparse: SparseTensor, record: PartRecord) -> TensorSizes:
    codecs = {}
    for codec in CODECS:
        form = store(sparse, codec)
        codecs[codec] = sum(len(block.data) for block in [*form.blocks, *([form.rows] if form.rows else [])])
    return TensorSizes(
        entries=sparse.layout.entries,
        kept=sparse.layout.kept,
        stored=record.size,
        shannon=shannon_bits(sparse.layout) / 8,
        published=Flag4().estimate_bytes(SparseStats(sparse)),
        codecs=codecs,
    )
