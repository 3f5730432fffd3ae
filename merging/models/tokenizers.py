"""Tokenizers of transformers: loading them, and making one of several models' tokens.

Source of `united` and `without_unused`: mergekit 0.1.5, tokenizer/build.py.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import FlexswitchError, InputError
from flexswitch.merging.checkpoints.config import CODE_KEYS, parse_json, without_keys

_SETTINGS = "tokenizer_config.json"
_OF_LOADING = f"{CODE_KEYS}|is_local|local_files_only"  # what transformers keeps of how one was loaded
_FILES = (
    _SETTINGS,
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
)  # any of them


def has_tokenizer(directory: Path | None) -> bool:
    """Returns whether a model's directory has a tokenizer."""
    return directory is not None and any(file for pattern in _FILES for file in directory.glob(pattern))


def load_tokenizer(directory: Path, source: str) -> Any:
    """Returns a model's tokenizer; no code that comes with it is run. Raises: InputError."""
    from transformers import AutoTokenizer

    with tokenizer_errors(directory, source, "its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers returns if there are no files
        raise InputError(f"{source}: has no tokenizer; copy the model's tokenizer.json to it")
    return tokenizer


@contextmanager
def tokenizer_errors(directory: Path, source: str, problem: str) -> Iterator[None]:
    """Raises: InputError, which names the tokenizer's file, for whatever its libraries raise."""
    try:
        yield
    except FlexswitchError:
        raise
    except BaseException as reason:
        # a panic in Rust is a BaseException, of a class that cannot be imported
        if not isinstance(reason, Exception) and type(reason).__name__ != "PanicException":
            raise
        file = directory / "tokenizer.json"
        found = " ".join(str(reason).split())[:200]
        raise InputError(f"{file if file.is_file() else source}: {problem} ({found})") from reason


def without_unused(tokenizer: Any, size: int, source: str) -> Any:
    """Returns a tokenizer without the tokens that a model of `size` tokens has no rows for.

    Raises: InputError where there are some, unless it is of byte pairs.
    """
    unused = {token for token, number in tokenizer.get_vocab().items() if number >= size}
    if not unused:
        return tokenizer
    document = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    model = document.get("model", {})
    if model.get("type") != "BPE":
        raise InputError(
            f"{source}: its tokenizer has {len(unused)} tokens, such as {min(unused)!r}, that a model of "
            f"{size} tokens has no rows for, and only a tokenizer of byte pairs (BPE) can be cut; give the "
            "model's own tokenizer"
        )
    document["added_tokens"] = [each for each in document["added_tokens"] if each["id"] < size]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in unused}
    inside = model.get("continuing_subword_prefix") or ""
    model["merges"] = [pair for pair in model["merges"] if unused.isdisjoint(_tokens(pair, inside))]
    return _with_document(tokenizer, document)


def united(base: Any, others: Sequence[tuple[Any, int]]) -> Any:
    """Returns the base's tokenizer with the tokens of others, each with its model's number of tokens, added.

    Tokens come in the order of the models and of their numbers there, those that were added to a tokenizer
    last. The base is changed.
    """
    own = base.get_vocab()
    plain: dict[str, None] = {}
    added: dict[str, Any] = {}
    for tokenizer, size in others:
        settings = tokenizer.added_tokens_decoder
        apart = {each.content for each in settings.values()}
        numbers = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        plain |= {token: None for token, number in numbers if number < size and token not in apart}
        for number in sorted(settings):
            if number < size:
                added.setdefault(settings[number].content, settings[number])
    base.add_tokens([token for token in plain if token not in added and token not in own])
    base.add_tokens(list(added.values()))
    return base


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """Returns the files of a tokenizer, as transformers saves them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        found = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    settings = without_keys(parse_json(found[_SETTINGS]), _OF_LOADING)
    found[_SETTINGS] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    return found


def _tokens(pair: str | Sequence[str], inside: str) -> tuple[str, str, str]:
    """Returns the two tokens of a merge, and the one that it makes, which mergekit forgets.

    inside: the prefix of tokens inside a word.
    """
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return first, second, first + second.removeprefix(inside)


def _with_document(tokenizer: Any, document: Mapping[str, Any]) -> Any:
    """Returns a tokenizer of other contents, by way of its files."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        return load_tokenizer(Path(folder), tokenizer.name_or_path)
