"""A task vector as a PEFT LoRA: each layer's delta is approximated best by a product of two thin matrices.

Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1; the truncated singular value decomposition is the best
approximation of its rank (Eckart and Young 1936).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.checkpoints.running_names import RunningModel, running_model
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.task_vector import TaskVector, delta_tensor

Rank = int | Literal["auto"]
ROOT = "base_model.model."
AUTO_ERROR = 0.1  # the relative error that `auto` allows
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM",
}  # fmt: skip


class Layer(NamedTuple):
    """A tensor of the base that a LoRA adapts: its module in the running model, and how it is stored."""

    module: str
    kind: str  # "linear", "transposed" or "embedding"


class Factors(NamedTuple):
    """The leading singular triples of a layer's delta, (out, k), (k), (k, in), and all singular values."""

    left: Tensor
    values: Tensor
    right: Tensor
    spectrum: Tensor

    def error(self, rank: int) -> float:
        """Returns the Frobenius norm of what a rank leaves out."""
        return float(self.spectrum[rank:].square().sum().sqrt())


@dataclass(frozen=True)
class Lora:
    """A LoRA: its rank, tensors by stored name and config, and the relative error of each delta and of all.

    left_out: the base's tensors that changed and that no LoRA can change; their error is 1.
    """

    rank: int
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    errors: Mapping[str, float]
    total_error: float
    left_out: list[str]


def to_lora(
    base: Checkpoint, vector: TaskVector, rank: Rank, on_tensor: Callable[[str], None] = lambda name: None
) -> Lora:
    """Returns a task vector as a LoRA of one rank for all layers.

    rank: "auto" for the least with an error of at most 0.1. Raises: InputError if the model is not known, or
    no layer changed that a LoRA can change.
    """
    settings = {**read_config(base), **vector.model.config}
    model = running_model(settings)
    if model is None:
        raise InputError(
            f"{base.source}: its layers are not known; a LoRA needs the config.json of a model that "
            "transformers knows, and flexswitch[eval]"
        )
    layers = _layers(model, vector)
    factors, norms = _decompositions(vector, layers, _RANKS[-1] if rank == "auto" else rank, on_tensor)
    if not factors:
        raise InputError(f"{vector.source}: changes no layer that a LoRA can change")
    chosen = _least_rank(factors) if rank == "auto" else rank
    buffers = {vector.model.finetuned_name(name) for name in base.tensors} & set(vector.extras)
    whole = {name: to_torch(vector.extra(name)) for name in vector.extras if name not in buffers}
    tensors = {ROOT + name: tensor for name, tensor in whole.items()}
    for name, each in factors.items():
        tensors |= _stored(layers[name], each, chosen)
    left_out = {name for name, norm in norms.items() if norm and name not in factors}
    missed = {name: each.error(chosen) for name, each in factors.items()}
    missed |= {name: norms[name] for name in left_out}
    return Lora(
        rank=chosen,
        tensors=dict(sorted(tensors.items())),
        config=_config(settings, base.hub_id, [layers[name] for name in factors], list(whole), chosen),
        errors={name: missed[name] / norms[name] for name in sorted(missed)},
        total_error=math.hypot(*missed.values()) / math.hypot(*norms.values()),
        left_out=sorted(left_out | buffers),
    )


def _decompositions(
    vector: TaskVector, layers: Mapping[str, Layer], most: int, on_tensor: Callable[[str], None]
) -> tuple[dict[str, Factors], dict[str, float]]:
    """Returns the factors of each layer that changed, and the Frobenius norm of every delta."""
    factors: dict[str, Factors] = {}
    norms: dict[str, float] = {}
    for name in vector.tensors:
        on_tensor(name)
        delta = delta_tensor(vector, name).to(torch.float64)
        norms[name] = float(delta.norm())
        if norms[name] and name in layers:
            factors[name] = _decomposed(delta if layers[name].kind == "linear" else delta.T, most)
    return factors, norms


def _layers(model: RunningModel, vector: TaskVector) -> dict[str, Layer]:
    """Returns the tensors of the base that are the weights of layers which peft adapts."""
    names = {vector.model.finetuned_name(name): name for name in vector.tensors}
    found = {}
    for finetuned, running in model.running_names(names).items():
        kind = model.layer_kind(running)
        if kind is not None:
            found[names[finetuned]] = Layer(running.removesuffix(".weight"), kind)
    return found


def _decomposed(delta: Tensor, most: int) -> Factors:
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    kept = min(most, len(values))
    return Factors(left[:, :kept].clone(), values[:kept].clone(), right[:kept].clone(), values)


def _least_rank(factors: Mapping[str, Factors]) -> int:
    """Returns the least of some ranks whose relative error over all layers is at most `AUTO_ERROR`."""
    norm = math.hypot(*(each.error(0) for each in factors.values()))
    for rank in _RANKS:
        if math.hypot(*(each.error(rank) for each in factors.values())) <= AUTO_ERROR * norm:
            return rank
    return _RANKS[-1]


def _stored(layer: Layer, factors: Factors, rank: int) -> dict[str, Tensor]:
    """Returns A (rank, in) and B (out, rank), float32, by their stored names; B A approximates the delta."""
    roots = factors.values[:rank].sqrt()
    a, b = roots[:, None] * factors.right[:rank], factors.left[:, :rank] * roots
    missing = rank - len(roots)  # a delta smaller than the rank
    a = torch.nn.functional.pad(a, (0, 0, 0, missing)).to(torch.float32).contiguous()
    b = torch.nn.functional.pad(b, (0, missing)).to(torch.float32).contiguous()
    if layer.kind == "embedding":
        return {f"{ROOT}{layer.module}.lora_embedding_A": a, f"{ROOT}{layer.module}.lora_embedding_B": b}
    return {f"{ROOT}{layer.module}.lora_A.weight": a, f"{ROOT}{layer.module}.lora_B.weight": b}


def _config(
    settings: Mapping[str, Any], hub_id: str | None, layers: list[Layer], whole: list[str], rank: int
) -> dict[str, Any]:
    """Returns the adapter_config.json."""
    architectures = [str(name) for name in settings.get("architectures") or []]
    types = [kind for name in architectures for ending, kind in _TASK_TYPES.items() if name.endswith(ending)]
    return {
        "peft_type": "LORA",
        "task_type": types[0] if types else None,
        "base_model_name_or_path": hub_id,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(layer.module for layer in layers),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
        "fan_in_fan_out": any(layer.kind == "transposed" for layer in layers),
        "bias": "none",
        "inference_mode": True,
    }
