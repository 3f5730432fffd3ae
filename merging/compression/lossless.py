"""Lossless: the fine-tuned weights bit for bit, each coded given the base's."""

from collections.abc import Iterator

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.exact_forms import PackedExact, packed_exact
from flexswitch.codecs.residual import NUMBER_KINDS
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.floating import is_floating
from flexswitch.merging.checkpoints.quantised import DequantisedCheckpoint
from flexswitch.merging.compression.extras import pack_extras
from flexswitch.merging.compression.plan import ExactPlan, Job
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.exact_tensors import number_bytes, stored_ranges
from flexswitch.merging.task_vectors.task_vector import TaskVector


def lossless(vector: TaskVector, job: Job) -> ExactPlan:
    """Returns the plan that stores every tensor of a fine-tuned checkpoint bit for bit.

    Raises: UsageError if the task vector is not that of two checkpoints; InputError.
    """
    if not isinstance(vector, CheckpointPair):
        raise UsageError(
            f"{vector.source}: lossless codes the weights of a checkpoint; give the fine-tuned checkpoint "
            "and --base BASE"
        )
    finetuned, base = vector.finetuned, vector.base
    if isinstance(finetuned, DequantisedCheckpoint):
        raise InputError(
            f"{vector.source}: its weights are quantised, and are read as other ones than the file's, which "
            "lossless would have to store; take another method"
        )
    names = {
        name: finetuned.tensors[other]
        for name, other in sorted(vector.counterparts.items())
        if _is_coded(vector.source, name, base.tensors[name], finetuned.tensors[other])
    }
    coded = {vector.counterparts[name] for name in names}
    extras = pack_extras(vector, [name for name in vector.extras if name not in coded], "exact")
    return ExactPlan(names, extras, lambda name: _packed(vector, name))


def _is_coded(source: str, name: str, base: TensorInfo, finetuned: TensorInfo) -> bool:
    """Returns whether a tensor is coded given the base's, rather than stored on its own."""
    if finetuned.dtype not in NUMBER_KINDS:
        raise InputError(
            f"{source}: tensor '{name}' has the dtype {finetuned.dtype}, expected one of "
            f"{', '.join(NUMBER_KINDS)}; take another method"
        )
    if base.shape != finetuned.shape:
        if is_floating(base.dtype) and base.shape:
            raise UsageError(
                f"{source}: tensor '{name}' has the shape {list(finetuned.shape)}, and the base's "
                f"{list(base.shape)}; lossless stores all of it, with --on-resize extra"
            )
        return False
    return base.dtype == finetuned.dtype or (is_floating(base.dtype) and is_floating(finetuned.dtype))


def _packed(vector: CheckpointPair, name: str) -> PackedExact | None:
    """Returns a tensor as it is stored, None if it has the base's dtype and bytes."""
    base, finetuned, other = vector.base, vector.finetuned, vector.counterparts[name]
    info, before = finetuned.tensors[other], base.tensors[name]

    def blocks() -> Iterator[tuple[bytes, bytes]]:
        for start, stop in stored_ranges(info.shape):
            numbers, found = base.read(name, start, stop), finetuned.read(other, start, stop)
            yield number_bytes(numbers, info.dtype), number_bytes(found, info.dtype)

    packed = packed_exact(info.shape, info.dtype, blocks())
    is_same = info.dtype == before.dtype and all(each.form.name == "same" for each in packed.record.blocks)
    return None if is_same else packed
