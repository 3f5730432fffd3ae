"""What the adapters of peft have in common: changed layers, tensors that are saved whole, and errors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.checkpoints.running_names import RunningModel, running_model
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.task_vector import TaskVector

ROOT = "base_model.model."
_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM",
}  # fmt: skip

OnTensor = Callable[[str], None]


class Layer(NamedTuple):
    """A tensor of the base that an adapter changes: its module in the running model, and how it is stored."""

    module: str
    kind: str  # "linear", "transposed" or "embedding"


@dataclass(frozen=True)
class Adapter:
    """An adapter: rank, tensors by stored name, config, and the relative error of each delta and of all.

    left_out: the base's tensors that changed and that the adapter can't change; their error is 1.
    """

    rank: int
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    errors: Mapping[str, float]
    total_error: float
    left_out: list[str]


class Adapted:
    """A task vector that becomes an adapter. settings: the config of the fine-tuned model."""

    def __init__(self, base: Checkpoint, vector: TaskVector) -> None:
        self.settings = {**read_config(base), **vector.model.config}
        model = running_model(self.settings)
        if model is None and find_spec("transformers") is None:
            raise InputError("an adapter needs transformers; pip install 'flexswitch[eval]'")
        if model is None:
            raise InputError(
                f"{base.source}: its layers are not known; an adapter needs the config.json of a model that "
                "transformers knows"
            )
        self._base = base
        self.layers = _layers(model, vector)
        self._buffers = {vector.model.finetuned_name(name) for name in base.tensors} & set(vector.extras)
        self._whole = {
            name: to_torch(vector.extra(name)) for name in vector.extras if name not in self._buffers
        }

    def adapter(
        self,
        kind: Mapping[str, Any],
        rank: int,
        tensors: Mapping[str, Tensor],
        missed: Mapping[str, float],
        norms: Mapping[str, float],
    ) -> Adapter:
        """Returns the adapter.

        kind: the entries of adapter_config.json that only this kind of adapter has. tensors: those of the
        changed layers, by stored name. missed: the Frobenius norm of what each changed layer leaves out, by
        the base's name. norms: those of all deltas.
        """
        left_out = {name for name, norm in norms.items() if norm and name not in missed}
        errors = {**missed, **{name: norms[name] for name in left_out}}
        whole = {ROOT + name: tensor for name, tensor in self._whole.items()}
        return Adapter(
            rank=rank,
            tensors=dict(sorted((whole | dict(tensors)).items())),
            config=self._config([self.layers[name] for name in missed]) | {"r": rank} | dict(kind),
            errors={name: errors[name] / norms[name] for name in sorted(errors)},
            total_error=math.hypot(*errors.values()) / math.hypot(*norms.values()),
            left_out=sorted(left_out | self._buffers),
        )

    def _config(self, layers: list[Layer]) -> dict[str, Any]:
        """Returns the entries of adapter_config.json that all kinds of adapters have."""
        architectures = [str(name) for name in self.settings.get("architectures") or []]
        types = [
            kind for name in architectures for ending, kind in _TASK_TYPES.items() if name.endswith(ending)
        ]
        return {
            "task_type": types[0] if types else None,
            "base_model_name_or_path": self._base.hub_id,
            "target_modules": sorted(layer.module for layer in layers),
            "modules_to_save": sorted({name.rpartition(".")[0] for name in self._whole}) or None,
            "inference_mode": True,
        }


def _layers(model: RunningModel, vector: TaskVector) -> dict[str, Layer]:
    """Returns the tensors of the base that are the weights of layers which peft adapts."""
    names = {vector.model.finetuned_name(name): name for name in vector.tensors}
    found = {}
    for finetuned, running in model.running_names(names).items():
        kind = model.layer_kind(running)
        if kind is not None:
            found[names[finetuned]] = Layer(running.removesuffix(".weight"), kind)
    return found
