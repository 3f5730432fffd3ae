"""Reads mergekit's YAML configuration as the arguments of `merge`.

What is not understood is refused by name. Source: mergekit 0.1.5, docs/merge_methods.md and config.py.
"""

import glob
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from flexswitch.codecs.errors import InputError, UsageError, not_found, unknown_name
from flexswitch.merging.checkpoints.config import layers_key, read_json_object
from flexswitch.merging.checkpoints.opening import locate
from flexswitch.merging.commands.arguments import OutputDtype
from flexswitch.merging.commands.peer_methods import PEER_METHODS, PeerMethod
from flexswitch.merging.commands.peer_tokenizer import TokenizerChoice, read_tokenizer
from flexswitch.merging.commands.yaml_values import check_values
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.methods.settings import by_task_settings
from flexswitch.merging.task_vectors.task_name import task_name

_MOST_BYTES, _LONGEST_NAME = 1_000_000, 100
_ODD_LETTERS = re.compile(r"[^A-Za-z0-9._-]+")  # those that no task's name may have
_IGNORED = {"int8_mask": "signs are elected exactly"}
_KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer",
)  # fmt: skip
DTYPES: dict[str, OutputDtype] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


@dataclass
class PeerMerge:
    """The arguments of `merge`, and notes for the user.

    paths: of the models, by their tasks. tokenizer: that of the merge, None for the base's as it is.
    """

    paths: dict[str, str]
    base: str
    method: str
    settings: dict[str, Any]
    dtype: OutputDtype | None
    weights: dict[str, Any] = field(default_factory=dict)
    set_for: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tokenizer: TokenizerChoice | None = None

    @property
    def sources(self) -> list[str]:
        """The models as `TASK=PATH`."""
        return [f"{task}={path}" for task, path in self.paths.items()]

    def drop_unmatched(self, names: Collection[str]) -> None:
        """Leaves out settings for tensors that are none of these names, as mergekit does, with a note."""
        kept = []
        for pattern, values in self.set_for:
            of_names = pattern.rpartition(":")[2]
            if any(fnmatchcase(name, of_names) for name in names):
                kept.append((pattern, values))
            else:
                self.notes.append(
                    f"no tensor's name matches {of_names}: its value of {', '.join(values)} has no effect"
                )
        self.set_for = kept


@dataclass(frozen=True)
class _Model:
    """A model of the configuration: where it is, its task's name, and its own parameters."""

    path: str
    task: str
    parameters: Mapping[str, Any]


def read_peer_config(path: Path, document: Mapping[str, Any]) -> PeerMerge:
    """Returns what a configuration asks for; document: as it was read. Raises: InputError, UsageError."""
    method = PEER_METHODS.get(str(document.get("merge_method")))
    if method is None:
        named = unknown_name(
            "merge_method", str(document.get("merge_method")), [*PEER_METHODS, "passthrough"]
        )
        raise InputError(f"{path}: {named}")
    models = _models(path, document, {"base"} if method.base_first else set())
    base = document.get("base_model")
    if base is None and method.base == "required":
        raise InputError(f"{path}: {document['merge_method']} needs a base_model")
    if base is not None and method.base == "none" and base not in [model.path for model in models]:
        raise InputError(f"{path}: {document['merge_method']} merges its models; leave out base_model")
    if method.base == "required":
        models = [model for model in models if model.path != base]
    if method.base_first:
        models = [_Model(str(base), "base", {}), *models]
    if not models:
        raise InputError(f"{path}: models: expected a model beside the base_model")
    dtype = stored_dtype(path, document)
    found = PeerMerge(
        {model.task: model.path for model in models},
        str(base or models[0].path), method.name, method.fixed(base is not None),
        dtype, tokenizer=read_tokenizer(path, document),
    )  # fmt: skip
    found.notes += [f"{path}: the merge is computed in float32, and stored in {dtype}"] * (
        dtype not in (None, "float32")
    )
    _set_parameters(path, found, method, parameters_of(path, document), models)
    return found


def stored_dtype(path: Path, document: Mapping[str, Any]) -> OutputDtype | None:
    """Returns the dtype of the weights that are written, None for that of the base. Raises: InputError."""
    for key in ("dtype", "out_dtype"):
        if document.get(key) is not None and str(document[key]) not in DTYPES:
            raise InputError(f"{path}: {key} {document[key]}, expected one of {', '.join(DTYPES)}")
    chosen = document.get("out_dtype") or document.get("dtype")
    return None if chosen is None else DTYPES[chosen]


def read_document(path: Path) -> dict[str, Any]:
    """Returns the document, of known keys. Raises: InputError."""
    if not path.is_file():
        raise InputError(not_found(path, "a merge configuration in YAML"))
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path}: has {path.stat().st_size:,} bytes, expected {_MOST_BYTES:,} at most")
    try:
        document = _parsed(path)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as reason:
        raise InputError(f"{path}: is not YAML ({' '.join(str(reason).split())[:200]})") from reason
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected keys and values, such as merge_method: ties")
    for key in document:
        if key not in _KEYS:
            raise InputError(f"{path}: {key} is not handled; handled are {', '.join(_KEYS)}")
    return document


def _parsed(path: Path) -> Any:
    """Returns the YAML document in a file. Raises: InputError, and errors of the library."""
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    node = loader.get_single_node()
    if node is None:
        return None
    check_values(path, node)
    return loader.construct_document(node)


def _models(path: Path, document: Mapping[str, Any], taken: Set[str]) -> list[_Model]:
    """Returns the models of `models`, or of one slice of all their layers.

    taken: names that no task may have. Raises: InputError.
    """
    if ("models" in document) == ("slices" in document):
        raise InputError(f"{path}: expected one of models and slices")
    entries = document["models"] if "models" in document else _one_slice(path, document["slices"])
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: models: expected a list of models")
    found: list[_Model] = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise InputError(f"{path}: {entry!r:.80}: expected model: PATH")
        odd = sorted(map(str, entry.keys() - {"model", "parameters"}))
        if odd:
            raise InputError(f"{path}: {odd[0]} of model {entry['model']} is not handled")
        task = _free_name(entry["model"], {*taken, *(model.task for model in found)})
        found.append(_Model(entry["model"], task, parameters_of(path, entry)))
    return found


def _free_name(model: str, taken: Set[str]) -> str:
    """Returns a task's name after a model's path, of letters that `TASK=PATH` takes, and not taken yet."""
    name = _ODD_LETTERS.sub("-", task_name(model.rstrip("/"))).lstrip("._-")[:_LONGEST_NAME] or "model"
    numbered = (f"{name}-{number}" for number in itertools.count(len(taken) + 1))
    return name if name not in taken else next(each for each in numbered if each not in taken)


def _one_slice(path: Path, slices: Any) -> list[dict[str, Any]]:
    """Returns the sources of a single slice that has all layers of its models. Raises: InputError."""
    if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], dict):
        raise InputError(f"{path}: slices: only one slice of all layers is handled")
    if set(slices[0]) != {"sources"} or not isinstance(slices[0]["sources"], list):
        odd = sorted(map(str, slices[0].keys() - {"sources"}))
        raise InputError(f"{path}: slices: {odd[0] if odd else 'sources'} is not handled")
    sources = []
    for source in slices[0]["sources"]:
        if not isinstance(source, dict) or not isinstance(source.get("model"), str):
            raise InputError(f"{path}: slices: {source!r:.80}: expected model and layer_range")
        config = read_json_object(locate(source["model"]).path / "config.json")
        layers = config.get(layers_key(config))
        if source.get("layer_range") != [0, layers]:
            raise InputError(
                f"{path}: slices: layer_range {source.get('layer_range')} of {source['model']} is not "
                f"handled, only that of all layers, [0, {layers}]"
            )
        sources.append({key: value for key, value in source.items() if key != "layer_range"})
    return sources


def parameters_of(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a configuration or a model, none where there are none. Raises: InputError."""
    found = given.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise InputError(f"{path}: parameters: expected names and values")
    return found or {}


def _set_parameters(
    path: Path, found: PeerMerge, method: PeerMethod, shared: Mapping[str, Any], models: Sequence[_Model]
) -> None:
    """Adds the parameters of all models, then those of single ones. Raises: InputError, UsageError."""
    for task, parameters in [("", shared), *((model.task, model.parameters) for model in models)]:
        for key, setting in parameters.items():
            if key in _IGNORED:
                found.notes.append(f"{path}: {key} has no effect: {_IGNORED[key]}")
                continue
            prefix = f"{task}:" if task else ""
            for pattern, value in conditions(path, key, setting):
                values = method.translated(path, key, value)
                if task and values.keys() - by_task_settings(get_method(method.name, "merge")) - {"weight"}:
                    raise InputError(
                        f"{path}: {key} is the same for all models; move it from model {task} to the "
                        "parameters of the merge"
                    )
                found.set_for.append((f"{prefix}{pattern}", values))
    for model in models if "weight" in method.required else ():
        _check_given(path, f"model {model.path}", "weight", (model.parameters, shared))
    if "t" in method.required:
        _check_given(path, "parameters", "t", (shared, *(model.parameters for model in models)))


def _check_given(path: Path, place: str, key: str, parameters: Sequence[Mapping[str, Any]]) -> None:
    """Raises: InputError where some tensor has no value of a parameter that needs one."""
    given = [pattern for each in parameters if key in each for pattern, _ in conditions(path, key, each[key])]
    if not given:
        raise InputError(f"{path}: {place}: {key} is missing")
    if "*" not in given:
        raise InputError(
            f"{path}: {place}: {key} has no value for tensors that no filter matches; end its list with "
            "- value: NUMBER"
        )


def conditions(path: Path, key: str, setting: Any) -> Iterator[tuple[str, Any]]:
    """Yields (pattern, value), of which the last match counts; in the file it is the first.

    Raises: InputError on a value that is no number, list of numbers or list of filters.
    """
    conditions = setting if isinstance(setting, list) and any(isinstance(e, dict) for e in setting) else None
    if conditions is None:
        conditions = [{"value": setting}]
    for condition in reversed(conditions):
        if not isinstance(condition, dict) or not {"value"} <= set(condition) <= {"value", "filter"}:
            raise InputError(f"{path}: {key}: {condition!r:.80}: expected value, and filter or nothing else")
        named, value = condition.get("filter"), condition["value"]
        parts = value if isinstance(value, list) else [value]
        if not parts or not all(map(_is_value, parts)):
            raise InputError(f"{path}: {key}: {value!r:.80}: expected a number or a list of numbers")
        yield "*" if named in (None, "*") else f"*{glob.escape(str(named))}*", value


def _is_value(part: Any) -> bool:
    """Returns whether a part of a setting may be a number: texts are checked with the setting."""
    return math.isfinite(part) if isinstance(part, float) else isinstance(part, (int, str))


def check_alone(**given: Any) -> None:
    """Raises: UsageError where an option is given beside a configuration, which says all of it."""
    for name, value in given.items():
        if value:
            option = name.replace("_", "-")
            raise UsageError(f"--config: the file says all about the merge; leave out {option}")
