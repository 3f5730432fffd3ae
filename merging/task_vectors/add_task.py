"""Turns a live model into a task's, in place.

A kept weight becomes w + λ·v, computed in float32 and rounded once to the weight's dtype.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flexswitch.codecs.argument_types import NUMBER, PATH, check_argument, is_number, is_path
from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.task_vectors.apply import COMPILED_DTYPES, Addend, ScaledLevels, add_on_device
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.difference import add_delta, difference
from flexswitch.merging.task_vectors.exact_tensors import exact_blocks
from flexswitch.merging.task_vectors.live_weights import LiveWeights, check_live_weights
from flexswitch.merging.task_vectors.rounding import rounded
from flexswitch.merging.task_vectors.shared_vector import SharedVector, artifact_vector


def add_task(
    weights: Mapping[str, Tensor],
    artifact: Artifact,
    lambda_: float = 1.0,
    *,
    base: str | Path | None = None,
    check_base: bool = True,
) -> None:
    """Adds λ·τ̂ to a live model's weights, in place and on their devices: θ becomes θ + λ·τ̂.

    weights: base name → tensor, as in a module's `state_dict()`, with the base's values. base: the base's
    path or hub id, to compare the weights with; needed where some of the base's are missing, or in another
    dtype. check_base: whether they are checked to be the base's; not where they hold another task already,
    when a task that contains multiples of the base's weights needs `base`.

    Raises: InputError if one is missing, has another shape or dtype, is not contiguous, or is not the base's;
    InputError if one would become infinite, when they have to be loaded again; DecodeError.
    """
    _check_arguments(weights, artifact, lambda_, base)
    opened = None if base is None else open_base(base)
    live = opened or LiveWeights(weights)
    vector = artifact_vector(artifact, live)
    _check_weights(weights, artifact, vector)
    if opened is None and not check_base:
        _check_independent(artifact)
    if check_base:
        check_live_weights(weights, artifact.header.base, str(artifact.path), opened)
    with torch.no_grad():
        if isinstance(vector, SharedVector):
            for name in vector.tensors:
                _add_blocks(weights[name].detach().view(-1), vector, name, lambda_)
            return
        for name, record in artifact.header.tensors.items():
            flat = weights[name].detach().view(-1)
            if not vector.is_sparse(name):
                _add_blocks(flat, vector, name, lambda_)
            elif flat.device.type == "cpu" and flat.dtype in COMPILED_DTYPES:
                Addend(artifact, name, lambda_).add_to(flat)
            else:
                values = ScaledLevels(record.bits, record.scale, lambda_, record.zero)
                add_on_device(flat, artifact.sparse(name), values, name)
        for name in artifact.header.exact:
            _add_exact(weights[name].detach().view(-1), artifact, name, lambda_, live)


def _check_independent(artifact: Artifact) -> None:
    """Raises: InputError where a tensor contains a multiple of the base's."""
    for name, record in artifact.header.tensors.items():
        if record.base_factor:
            raise InputError(
                f"{artifact.path}: tensor '{name}' contains a multiple of the base's, which the model need "
                "not hold with check_base=False: give base="
            )


def _check_weights(
    weights: Mapping[str, Tensor], artifact: Artifact, vector: ArtifactVector | SharedVector
) -> None:
    """Raises: InputError where the weights lack a changed tensor, or have it in another form."""
    exact = {name: tuple(record.shape) for name, record in artifact.header.exact.items()}
    shapes = exact | {name: info.shape for name, info in vector.tensors.items()}
    for name, shape in shapes.items():
        found = weights.get(name)
        if found is None or tuple(found.shape) != shape or not found.is_contiguous():
            held = "none" if found is None else f"{list(found.shape)}, strides {found.stride()}"
            raise InputError(
                f"{artifact.path}: tensor '{name}' of shape {list(shape)} needs a contiguous tensor of that "
                f"name and shape in the model, found {held}"
            )
        if found.is_complex() or (name not in exact and not found.is_floating_point()):
            raise InputError(
                f"{artifact.path}: tensor '{name}' is {found.dtype} in the model, expected a dtype of "
                "real numbers"
            )


def _add_blocks(weights: Tensor, vector: ArtifactVector | SharedVector, name: str, lambda_: float) -> None:
    """Adds λ·τ̂ to a tensor that is computed from factors, or from a shared one."""
    start = 0
    for block in vector.blocks(name):
        part = weights[start : start + len(block)]
        delta = lambda_ * torch.from_numpy(block).to(part.device)
        part.copy_(rounded(add_delta(part.to(torch.float32), delta), part, part.dtype, name))
        start += len(block)


def _add_exact(weights: Tensor, artifact: Artifact, name: str, lambda_: float, base: Checkpoint) -> None:
    """Adds λ·τ to a tensor that is stored exactly; with λ = 1 it becomes the fine-tuned one, bit for bit."""
    for start, before, found in exact_blocks(artifact, base, name):
        part = weights[start : start + len(found)]
        if lambda_ == 1:
            part.copy_(rounded(found, found, part.dtype, name))
        elif found.is_floating_point():
            delta = lambda_ * torch.from_numpy(difference(before, found)[0]).to(part.device)
            part.copy_(rounded(add_delta(part.to(torch.float32), delta), part, part.dtype, name))


def _check_arguments(weights: object, artifact: object, lambda_: object, base: object) -> None:
    """Raises: UsageError that names an argument of a wrong type."""
    values = weights.values() if isinstance(weights, dict) else ()
    are_tensors = isinstance(weights, Mapping) and all(isinstance(each, Tensor) for each in values)
    is_artifact = isinstance(artifact, Artifact)
    for name, value, fits, expected in (
        ("weights", weights, are_tensors, "tensors by name, as module.state_dict() returns"),
        ("artifact", artifact, is_artifact, "what open_artifact returns, or zoo[task]"),
        ("lambda_", lambda_, is_number(lambda_), NUMBER),
        ("base", base, base is None or is_path(base), f"{PATH}, or None"),
    ):
        check_argument("add_task", name, value, fits, expected)
