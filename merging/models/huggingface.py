"""The base class of the transformers adapters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.models.examples import Batch
from flexswitch.merging.models.feature_spec import parse_feature_spec
from flexswitch.merging.models.hidden_states import in_short_parts, layer_means, pooled_mean
from flexswitch.merging.models.loading import load_weights


class HuggingFace:
    """A transformers model directory whose features are mean-pooled hidden states."""

    neighbours: int

    def __init__(self, base: Checkpoint) -> None:
        try:
            import transformers
        except ImportError as reason:
            raise InputError("running models needs transformers; pip install 'flexswitch[eval]'") from reason
        self.config = read_config(base)
        if base.directory is None or "model_type" not in self.config:
            raise InputError(f"{base.source}: has no config.json with a 'model_type'; give a model directory")
        if self.config["model_type"] not in transformers.CONFIG_MAPPING:
            raise InputError(
                f"{base.source}: transformers {transformers.__version__} has no model type "
                f"'{self.config['model_type']}'; give --adapter python:package.module:factory"
            )
        self.base = base
        self.directory = base.directory
        self.transformers = transformers

    def encoder(self) -> nn.Module:
        """Returns the base without its head, with its weights loaded."""
        module = self.headless({})
        state = {name: self.base.read(name).view(info.shape) for name, info in self.base.tensors.items()}
        load_weights(module, state, self.base.source)
        return module

    def parameter_name(self, finetuned_name: str) -> str:
        """Returns the name unchanged; `load_weights` converts the names that transformers saves."""
        return finetuned_name

    def features(self, encoder: nn.Module, batch: Batch, spec: str) -> Tensor:
        """Returns means over the tokens that are not padding, (sample, width · layers) float32."""
        layers = parse_feature_spec(spec).layers
        if layers:
            return in_short_parts(batch, lambda part: layer_means(encoder, part, layers))
        return in_short_parts(batch, lambda part: pooled_mean(encoder, part))

    def headless(self, changes: Mapping[str, Any]) -> nn.Module:
        """Returns the model without a head and a pooler, which means over tokens do not use."""
        module = self.untrained("AutoModel", changes)
        if isinstance(getattr(module, "pooler", None), nn.Module):
            module.register_module("pooler", None)  # as transformers does with add_pooling_layer=False
        return module

    def untrained(self, kind: str, changes: Mapping[str, Any]) -> nn.Module:
        """Returns a model of one of transformers' Auto classes. Raises: InputError if it cannot be made."""
        entries = {**self.config, **changes}
        try:
            config = self.transformers.CONFIG_MAPPING[entries["model_type"]].from_dict(entries)
            config.dtype = torch.float32
            module: nn.Module = getattr(self.transformers, kind).from_config(config).float().eval()
        except Exception as reason:  # a wrong config may raise anything
            found = " ".join(str(reason).split())[:200]
            raise InputError(
                f"{self.base.source}: transformers cannot make an {kind} of its config.json ({found})"
            ) from reason
        return module
