"""What a compressed tensor is in an artifact: its record and its bytes."""

from flexswitch.codecs.format.artifact_writer import PackedTensor, packed_sum, packed_tensor
from flexswitch.codecs.storage import store
from flexswitch.merging.compression.delta import Compressed


def packed(compressed: Compressed, effort: str, dtype: str) -> PackedTensor | None:
    """Returns a tensor's stored form; None if it keeps nothing and is no multiple of the base's either.

    effort: see `store`. dtype: of the fine-tuned checkpoint, by its safetensors name.
    """
    factor = compressed.base_factor
    kept = [part for part in compressed.parts if len(part.sparse.levels)] or ([compressed] if factor else [])
    if not kept:
        return None
    return packed_sum([_packed_part(part, effort, dtype) for part in kept], factor)


def _packed_part(part: Compressed, effort: str, dtype: str) -> PackedTensor:
    form = store(part.sparse, effort=effort)
    return packed_tensor(part.sparse, form, part.scale, dtype, part.zero, part.shape, part.weights)
