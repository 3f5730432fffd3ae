"""One vocabulary for the models that a configuration of mergekit merges: their rows, tokenizer and config.

Source: mergekit 0.1.5, tokenizer/build.py and merge.py.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flexswitch.codecs.errors import InputError, unknown_name
from flexswitch.codecs.format.tensor_names import WHOLE
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config, read_json_object
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.checkpoints.opening import locate, open_checkpoint
from flexswitch.merging.checkpoints.running_names import RunningModel, running_model
from flexswitch.merging.checkpoints.token_rows import OtherRow, token_rows
from flexswitch.merging.checkpoints.vocabulary_checkpoint import VocabularyCheckpoint, VocabularyTensors
from flexswitch.merging.commands.peer_tokenizer import BASE, UNION, TokenizerChoice
from flexswitch.merging.models.tokenizers import (
    has_tokenizer,
    load_tokenizer,
    tokenizer_files,
    united,
    without_unused,
)
from flexswitch.merging.task_vectors.restore import OutputTensor
from flexswitch.merging.task_vectors.side_files import tokenizer_file_names

_GENERATION = "generation_config.json"
_NUMBER = re.compile(r".*_token_(?:id|ids|index)")  # entries of configs that are tokens' numbers


class _Model(NamedTuple):
    checkpoint: Checkpoint
    running: RunningModel
    size: int  # its number of tokens
    tokenizer: Any  # None if it has none


@dataclass(frozen=True, eq=False)
class CommonVocabulary:
    """Several models, and the vocabulary that they share once merged.

    tensors and tokens: of each model by its name in the configuration, the tokens with their rows. base: the
    model whose rows others get; main: it, or the first model. numbers: of the tokens in the main model.
    vocabulary: the tokens of the merge and their rows. unknown: the models without a tokenizer.
    """

    path: Path
    choice: TokenizerChoice
    tensors: Mapping[str, VocabularyTensors]
    tokens: Mapping[str, Mapping[str, int]]
    base: str | None
    main: str
    numbers: Mapping[str, int]
    tokenizer: Any
    vocabulary: Mapping[str, int]
    unknown: Sequence[str]

    @property
    def notes(self) -> list[str]:
        """What the user should know."""
        found = [
            f"{self.path}: {name} has no tokenizer; its rows are taken for those of {self.main}'s tokens"
            for name in self.unknown
        ]
        config = read_config(self.tensors[self.main].checkpoint)
        moved = [f"{key} {config[key]} is now {value}" for key, value in self._moved(config).items()]
        return found + [f"{self.path}: tokens have other numbers in config.json: {', '.join(moved)}"] * bool(
            moved
        )

    def checkpoints(self, names: Sequence[str], dtype: torch.dtype | None) -> dict[str, VocabularyCheckpoint]:
        """Returns models with the rows of the vocabulary; where one lacks some, they are of another of these.

        dtype: in which the merge is stored, None for the models' own. Raises: InputError.
        """
        models = [self.tensors[name] for name in names]
        base = names.index(self.base) if self.base in names else None
        others = {
            token: OtherRow(self._place(token, each.model, names), each.token, each.force)
            for token, each in self.choice.tokens.items()
        }
        rows = {}
        for kind in {kind: None for model in models for kind in model.kinds.values()}:
            held = [self.tokens[name] if self.tensors[name].name_of(kind) else None for name in names]
            try:
                rows[kind] = token_rows(self.vocabulary, held, base, others, self.choice.multiple)
            except InputError as reason:
                raise InputError(f"{self.path}: tokenizer: {reason}") from reason
        computed = None if dtype is None else torch.float32
        return {name: VocabularyCheckpoint(models, place, rows, computed) for place, name in enumerate(names)}

    def config_changes(self) -> dict[str, Any]:
        """Returns the entries of config.json that differ from the main model's."""
        config = read_config(self.tensors[self.main].checkpoint)
        changes = self._moved(config)
        keys, _ = _running(self.tensors[self.main].checkpoint).vocabulary_size()
        inner = changes
        for key in keys[:-1]:
            inner[key] = dict(inner.get(key) or config.get(key) or {})
            inner = inner[key]
        inner[keys[-1]] = self.size
        return changes

    def files(self) -> dict[str, bytes]:
        """Returns the tokenizer's files, and others whose tokens have other numbers, as extras of a task."""
        directory = self.tensors[self.main].checkpoint.directory
        found = {WHOLE + name: data for name, data in tokenizer_files(self.tokenizer).items()}
        if directory is None:
            return found
        for name in tokenizer_file_names(directory):
            found.setdefault(WHOLE + name, b"")
        if (directory / _GENERATION).is_file():
            settings = read_json_object(directory / _GENERATION)
            if moved := self._moved(settings):
                found[WHOLE + _GENERATION] = (json.dumps({**settings, **moved}, indent=2) + "\n").encode()
        return found

    def card_lines(self) -> dict[str, str]:
        """Returns what a model card says of the vocabulary."""
        return {"tokenizer": f"{self.choice.source}, {len(self.vocabulary):,} tokens"}

    def check(self, outputs: Mapping[str, OutputTensor], changes: Mapping[str, Any]) -> None:
        """Raises: InputError where the merged model, its config changed, has a tensor that does not fit."""
        checkpoint = self.tensors[self.main].checkpoint
        model = running_model({**read_config(checkpoint), **changes})
        infos = {name: output.info for name, output in outputs.items()}
        for name, shape in (model.misfits(infos) if model else {}).items():
            raise InputError(
                f"{self.path}: tensor '{name}' of {checkpoint.source} has the shape "
                f"{list(infos[name].shape)}, and a model of {self.size:,} tokens needs {list(shape)}; give "
                "the models one vocabulary before, and leave tokenizer_source out"
            )

    @property
    def size(self) -> int:
        """The number of rows."""
        return -(-(max(self.vocabulary.values()) + 1) // self.choice.multiple) * self.choice.multiple

    def _place(self, token: str, model: str | None, names: Sequence[str]) -> int | None:
        if model is not None and model not in names:
            named = unknown_name("model merged here", model, names)
            raise InputError(f"{self.path}: tokenizer: tokens: {token}: {named}")
        return None if model is None else names.index(model)

    def _moved(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the entries, at any depth, with tokens whose number changes; None for one that is gone."""
        texts = {number: token for token, number in self.numbers.items()}

        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [moved(each) for each in value]
            known = type(value) is int and value in texts
            return self.vocabulary.get(texts[value]) if known else value

        found = {}
        for key, value in entries.items():
            new = value
            if isinstance(value, dict):
                new = {**value, **self._moved(value)}
            elif _NUMBER.fullmatch(key):
                new = moved(value)
            if new != value:
                found[key] = new
        return found


def common_vocabulary(
    path: Path, choice: TokenizerChoice, names: Sequence[str], base: str | None
) -> CommonVocabulary:
    """Returns the vocabulary of the models of a configuration; base: its base model, if it names one.

    Raises: InputError.
    """
    main = names[0] if base is None else base
    models = {name: _opened(path, name, name == main) for name in dict.fromkeys([*names, main])}
    source = main if choice.source in (UNION, BASE) else choice.source
    for each in (main, source):
        if not has_tokenizer(locate(each).path):
            raise InputError(
                f"{path}: {each} has no tokenizer, by whose tokens the models' rows are matched; copy the "
                "model's tokenizer.json to it"
            )
    own = without_unused(models[main].tokenizer, models[main].size, main)
    numbers = dict(own.get_vocab())  # before other models' tokens are added
    unknown = [name for name, model in models.items() if model.tokenizer is None]
    tokens = {}
    for name, model in models.items():
        held = numbers if name == main or model.tokenizer is None else model.tokenizer.get_vocab()
        tokens[name] = {token: row for token, row in held.items() if row < model.size}
    if choice.source == UNION:
        others = [
            (model.tokenizer, model.size)
            for name, model in models.items()
            if name != main and model.tokenizer is not None
        ]
        tokenizer = united(own, others)
    elif choice.source == BASE:
        tokenizer = own
    else:
        tokenizer = load_tokenizer(locate(source).path, source)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in choice.tokens if token not in known])
    return CommonVocabulary(
        path,
        choice,
        _tensors(models, main),
        tokens,
        base,
        main,
        numbers,
        tokenizer,
        tokenizer.get_vocab(),
        unknown,
    )


def _opened(path: Path, name: str, is_main: bool) -> _Model:
    """Returns a model of a configuration, the main one hashed as it is read.

    Raises: InputError where it is not a whole one.
    """
    place = locate(name)
    if place.is_adapter or not (place.path / "config.json").is_file():
        raise InputError(
            f"{path}: {name}: rows of tokens are matched in whole models with a config.json; make one of it "
            "with flexswitch merge --task, or leave tokenizer_source out"
        )
    checkpoint = open_base(name) if is_main else open_checkpoint(place)
    running = _running(checkpoint)
    tokenizer = load_tokenizer(place.path, name) if has_tokenizer(place.path) else None
    return _Model(checkpoint, running, running.vocabulary_size()[1], tokenizer)


def _running(checkpoint: Checkpoint) -> RunningModel:
    """Returns a model without weights. Raises: InputError where transformers makes none."""
    try:
        import transformers  # noqa: F401 - only looked for
    except ImportError as reason:
        raise InputError(
            "merging vocabularies needs transformers; pip install 'flexswitch[eval]'"
        ) from reason
    model = running_model(read_config(checkpoint))
    if model is None:
        raise InputError(
            f"{checkpoint.source}: transformers makes no model of its config.json, which tells the tensors "
            "with a row for each token; leave tokenizer_source out"
        )
    return model


def _tensors(models: Mapping[str, _Model], main: str) -> dict[str, VocabularyTensors]:
    """Returns each model's tensors with a row for each token.

    A model that ties its head to its embedding gets a head of its own where the main model has one.
    """
    kinds = {}
    for name, model in models.items():
        held = [*model.checkpoint.tensors, *model.checkpoint.aliases]
        kinds[name] = model.running.vocabulary_kinds(held)
    heads = [name for name, kind in kinds[main].items() if kind == "head"]
    found = {}
    for name, model in models.items():
        own = {each: kind for each, kind in kinds[name].items() if each in model.checkpoint.tensors}
        embedding = next((each for each, kind in own.items() if kind == "embedding"), None)
        is_tied = "embedding" in model.running.vocabulary_kinds(heads).values()
        tied = {head: embedding for head in heads if embedding is not None and is_tied}
        found[name] = VocabularyTensors(model.checkpoint, own | dict.fromkeys(tied, "head"), tied)
    return found
