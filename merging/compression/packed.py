"""What a compressed tensor is in an artifact: its record and its bytes."""

from flexswitch.codecs.format.artifact_writer import PackedTensor, packed_sum, packed_tensor
from flexswitch.codecs.storage import store
from flexswitch.merging.compression.delta import Compressed


def packed(compressed: Compressed, effort: str, dtype: str) -> PackedTensor | None:
    """Returns a tensor's stored form; None if it keeps nothing and is no multiple of the base's either.

    effort: see `store`. dtype: of the fine-tuned checkpoint, by its safetensors name.
    """
    parts = packed_parts(compressed, effort, dtype)
    return packed_sum(parts, compressed.base_factor) if parts else None


def packed_parts(compressed: Compressed, effort: str, dtype: str) -> list[PackedTensor]:
    """Returns the stored forms of the parts that keep something; of a multiple alone, one that keeps none."""
    kept = [part for part in compressed.parts if len(part.sparse.levels)]
    if not kept and compressed.base_factor:
        kept = [compressed]
    return [
        packed_tensor(
            part.sparse,
            store(part.sparse, effort=effort),
            part.scale,
            dtype,
            part.zero,
            part.shape,
            part.weights,
        )
        for part in kept
    ]
