"""Which tensor of a file is which of the running model, by the tables of transformers.

A model's files may have the tensor names of an older release, and experts split that the running model has
fused. All that is used of transformers' internals stands in this file.
"""

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES, TORCH_DTYPES
from flexswitch.merging.checkpoints.model_config import check_numbers, config_class, model_entries
from flexswitch.merging.checkpoints.size_limit import size_limit

State = Mapping[str, Tensor]
_MOST_TENSORS, _MOST_ENTRIES = 3000, 10**13  # of a model whose names are wanted; it holds no weights


class Made(NamedTuple):
    """A tensor of the running model, and the names in the file that it is made of."""

    tensor: Tensor
    sources: tuple[str, ...]
    is_renamed: bool  # or else converted: fused, split or transposed


class _Place(NamedTuple):
    """Where a tensor of a file goes: into which tensor of the running model, and by which conversion."""

    name: str
    converter: Any
    pattern: str


class RunningModel:
    """A model without weights, which knows how transformers loads and saves its tensors."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        import transformers

        entries = model_entries(config)
        check_numbers(entries, "the model")
        settings = config_class(transformers, entries, "the model").from_dict(entries)
        names = config.get("architectures") or []
        known: list[Any] = [getattr(transformers, str(name), None) for name in names]
        models = [each for each in known if _is_model(each, transformers.PreTrainedModel)]
        with torch.device("meta"), size_limit(_MOST_TENSORS, _MOST_ENTRIES):
            if models:
                self._model = models[0](settings)
            else:
                self._model = transformers.AutoModel.from_config(settings, trust_remote_code=False)
        self._set(self._model)

    @classmethod
    def of(cls, model: Any) -> "RunningModel":
        """Returns one for a model of transformers that is in memory."""
        found = cls.__new__(cls)
        found._set(model)
        return found

    def _set(self, model: Any) -> None:
        self._model = model
        self._state = model.state_dict()
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._users = Counter(map(id, self._parameters.values()))

    def running_names(self, names: Iterable[str]) -> dict[str, str]:
        """Returns name in a file → name in the running model, for the tensors that are loaded as they are."""
        return {name: place.name for name, place in self._places(names).items() if place.converter is None}

    def tied_names(self, names: Collection[str], held: Collection[str]) -> dict[str, str]:
        """Returns name in a file → name among `held`, for names whose tensor is tied to one of these."""
        places = self.running_names([*names, *held])
        tensors = {name: id(self._parameters[new]) for name, new in places.items() if new in self._parameters}
        holders = {tensors[name]: name for name in held if name in tensors}
        return {name: holders[tensors[name]] for name in names if tensors.get(name) in holders}

    def layer_kind(self, name: str) -> str | None:
        """Returns "linear", "transposed" (in, out) or "embedding" for a weight of one layer, else None."""
        from transformers.pytorch_utils import Conv1D

        module, _, part = name.rpartition(".")
        parameter = self._parameters.get(name)
        if part != "weight" or parameter is None or self._users[id(parameter)] > 1:
            return None  # a change of one of several tied layers would not change the others
        kinds = {torch.nn.Linear: "linear", Conv1D: "transposed", torch.nn.Embedding: "embedding"}
        return kinds.get(type(self._model.get_submodule(module)))

    def vocabulary_kinds(self, names: Iterable[str]) -> dict[str, str]:
        """Returns name in a file → "embedding", "head" or "head bias", for tensors with a row for each token.

        A head that is tied to the embedding is of the embedding's kind.
        """
        head, embedding = self._model.get_output_embeddings(), self._model.get_input_embeddings()
        modules = {"head bias": (head, "bias"), "head": (head, "weight"), "embedding": (embedding, "weight")}
        kinds = {id(getattr(module, part, None)): kind for kind, (module, part) in modules.items()}
        running = self.running_names(names)
        found = {name: kinds.get(id(self._parameters.get(new, self))) for name, new in running.items()}
        return {name: kind for name, kind in found.items() if kind is not None}

    def vocabulary_size(self) -> tuple[list[str], int]:
        """Returns the keys, outermost first, of the number of tokens in its config, and that number."""
        config = self._model.config
        text = config.get_text_config()
        keys = [key for key in getattr(config, "sub_configs", {}) if getattr(config, key, None) is text]
        return [*keys[:1], "vocab_size"], text.vocab_size

    def misfits(self, tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
        """Returns name in a file → the shape in the running model, for tensors that have another one."""
        shapes = {name: tuple(self._state[new].shape) for name, new in self.running_names(tensors).items()}
        return {name: shape for name, shape in shapes.items() if shape != tensors[name].shape}

    def loaded(self, state: State) -> dict[str, Made]:
        """Returns the tensors of the running model that a file's make, by their running names."""
        from transformers.core_model_loading import WeightRenaming

        groups: dict[str, Any] = {}
        sources: dict[str, list[str]] = {}
        for name, place in self._places(state).items():
            own = place.converter or WeightRenaming(name, place.name)
            groups.setdefault(place.name, own).add_tensor(place.name, name, place.pattern, state[name])
            sources.setdefault(place.name, []).append(name)
        return {
            name: Made(_one(tensor), tuple(sources[first]), isinstance(group, WeightRenaming))
            for first, group in groups.items()
            for name, tensor in self._made(first, group).items()
        }

    def _made(self, first: str, group: Any) -> dict[str, Any]:
        """Returns what a conversion makes of the tensors that it has collected."""
        made = group.convert(first, model=self._model, config=self._model.config)
        found: dict[str, Any] = made[0] if isinstance(made, tuple) else made  # 5.0 returns its errors too
        return found

    def _places(self, names: Iterable[str]) -> dict[str, _Place]:
        """Returns for each name in a file that the running model takes where it goes."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        changes = get_model_conversion_mapping(self._model)
        renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        converters = [change for change in changes if isinstance(change, WeightConverter)]
        by_pattern = {pattern: change for change in converters for pattern in change.source_patterns}
        prefix, places = self._model.base_model_prefix, {}
        for name in sorted(names, key=dot_natural_key):
            running, pattern = rename_source_key(name, renamings, converters, prefix, self._state)
            if running not in self._state and name in self._state:
                running, pattern = name, None
            if running in self._state:
                converter = None if pattern is None else copy.deepcopy(by_pattern[pattern])
                places[name] = _Place(running, converter, pattern or name)
        return places

    def saved(self, state: State) -> dict[str, Tensor]:
        """Returns what transformers saves for some tensors of the running model, by their names in files."""
        from transformers.core_model_loading import revert_weight_conversion

        return {
            name: _one(tensor) for name, tensor in revert_weight_conversion(self._model, dict(state)).items()
        }


def running_model(config: Mapping[str, Any]) -> RunningModel | None:
    """Returns the model of a config.json, None if transformers is not installed or does not know it."""
    try:
        with _silence():
            return RunningModel(config)
    except Exception:  # any code of transformers may fail on any config
        return None


def converted(change: Any, state: State) -> dict[str, Any]:
    """Returns what `loaded` or `saved` makes of a state, nothing if transformers fails on it."""
    try:
        with _silence():
            found: dict[str, Any] = change(state)
    except Exception:  # shapes that do not fit the config
        return {}
    return found


def outlines(tensors: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Returns tensors of the same names, dtypes and shapes that hold no data."""
    return {
        name: torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype], device="meta")
        for name, info in tensors.items()
    }


def outline(tensor: Tensor) -> TensorInfo:
    """Returns a tensor's dtype and shape."""
    return TensorInfo(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))


def _is_model(kind: Any, model: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, model)


def _one(tensor: Any) -> Tensor:
    found: Tensor = tensor[0] if isinstance(tensor, list) else tensor
    return found


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps the warnings of transformers about a config away from the user."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
