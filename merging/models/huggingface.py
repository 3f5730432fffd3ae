"""The base class of the transformers adapters."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import FlexswitchError, InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.checkpoints.model_config import (
    check_numbers,
    config_class,
    decoded_floats,
    known_changes,
    model_entries,
)
from flexswitch.merging.checkpoints.size_limit import size_limit
from flexswitch.merging.models.examples import Batch
from flexswitch.merging.models.feature_spec import parse_feature_spec
from flexswitch.merging.models.hidden_states import in_short_parts, layer_means, pooled_mean
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.models.scored_tokens import model_inputs


class HuggingFace:
    """A transformers model directory whose features are mean-pooled hidden states."""

    neighbours: int

    def __init__(self, base: Checkpoint) -> None:
        try:
            import transformers
        except ImportError as reason:
            raise InputError("running models needs transformers; pip install 'flexswitch[eval]'") from reason
        config = read_config(base)
        if base.directory is None:
            raise InputError(f"{base.source}: has no config.json with a 'model_type'; give a model directory")
        self.config_class = config_class(transformers, config, base.source)
        self.config = model_entries(config)
        self.auto_map = config.get("auto_map")
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
        with self._running():
            if layers:
                return in_short_parts(batch, lambda part: layer_means(encoder, part, layers))
            return in_short_parts(batch, lambda part: pooled_mean(encoder, part))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns (sample, class), or (sample, token, vocabulary) for a language model.

        Raises: InputError where the model fails, as transformers checks few settings before.
        """
        with self._running():
            return self._logits(model, batch)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(**model_inputs(batch)).logits
        return logits

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Raises: InputError where a model fails in the context."""
        try:
            yield
        except (FlexswitchError, OSError, MemoryError):
            raise
        except Exception as reason:  # a wrong config may raise anything
            found = " ".join(str(reason).split())[:200]
            raise InputError(
                f"{self.base.source}: its model fails on the examples ({found}); check the settings of its "
                "config.json and of the task's"
            ) from reason

    def headless(self, changes: Mapping[str, Any]) -> nn.Module:
        """Returns the model without a head and a pooler, which means over tokens do not use."""
        module = self.untrained("AutoModel", changes)
        if isinstance(getattr(module, "pooler", None), nn.Module):
            module.register_module("pooler", None)  # as transformers does with add_pooling_layer=False
        return module

    def untrained(
        self, kind: str, changes: Mapping[str, Any], extras: Mapping[str, TensorInfo] | None = None
    ) -> nn.Module:
        """Returns a model of one of transformers' Auto classes.

        changes, extras: a task's config entries and own tensors. Raises: InputError if it cannot be made, or
        is far larger than what is stored.
        """
        source, stored = self.base.source, [*self.base.tensors.values(), *(extras or {}).values()]
        entries = decoded_floats({**self.config, **known_changes(self.config_class, changes)})
        kind_of_config = config_class(self.transformers, entries, source)
        check_numbers(entries, source)
        auto = getattr(self.transformers, kind)
        if kind_of_config not in auto._model_mapping:
            own = " but by code that comes with it, which is never run" if self.auto_map else ""
            raise InputError(
                f"{source}: transformers makes no {kind} of a '{entries['model_type']}'{own}; give another "
                "--adapter"
            )
        try:
            config = kind_of_config.from_dict(entries)
            config.dtype = torch.float32
            config._experts_implementation = "eager"  # the others cannot compute in float64
            # First without memory, because the config may ask for any.
            with size_limit(len(stored), sum(info.entries for info in stored)), torch.device("meta"):
                auto.from_config(copy.deepcopy(config), trust_remote_code=False)
            module: nn.Module = auto.from_config(config, trust_remote_code=False).float().eval()
        except Exception as reason:  # a wrong config may raise anything
            found = " ".join(str(reason).split())[:200]
            raise InputError(
                f"{source}: transformers cannot make an {kind} of its config.json ({found})"
            ) from reason
        return module
