"""Reads what a configuration of mergekit says about the tokenizer of the merge.

Source: mergekit 0.1.5, tokenizer/config.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import InputError

UNION, BASE = "union", "base"
_KEYS = ("source", "tokens", "pad_to_multiple_of")
_MOST_ROWS = 1 << 20


@dataclass(frozen=True)
class TokenChoice:
    """Where the row of one token comes from.

    model: as the configuration names it, None for zeros. token: there, its text or number, None for the same.
    force: for all models, and not only for those that lack the token.
    """

    model: str | None
    token: str | int | None = None
    force: bool = False


@dataclass(frozen=True)
class TokenizerChoice:
    """The tokenizer of a merge: UNION, BASE or a model; the tokens with a rule of their own.

    multiple: of which the number of rows is one.
    """

    source: str
    tokens: Mapping[str, TokenChoice] = field(default_factory=dict)
    multiple: int = 1


def read_tokenizer(path: Path, document: Mapping[str, Any]) -> TokenizerChoice | None:
    """Returns what `tokenizer_source` or `tokenizer` asks for, None without either. Raises: InputError."""
    source, given = document.get("tokenizer_source"), document.get("tokenizer")
    if given is None:
        return None if source is None else TokenizerChoice(_source(path, "tokenizer_source", source))
    if source is not None:
        raise InputError(f"{path}: expected one of tokenizer_source and tokenizer")
    _check_keys(path, "tokenizer", given, _KEYS)
    tokens = given.get("tokens") or {}
    if not isinstance(tokens, dict) or not all(isinstance(token, str) and token for token in tokens):
        raise InputError(f"{path}: tokenizer: tokens: expected texts and their sources")
    multiple = given.get("pad_to_multiple_of") or 1
    if type(multiple) is not int or not 1 <= multiple <= _MOST_ROWS:
        raise InputError(
            f"{path}: tokenizer: pad_to_multiple_of: {multiple!r:.80}: expected a whole number from 1 to "
            f"{_MOST_ROWS:,}"
        )
    return TokenizerChoice(
        _source(path, "tokenizer: source", given.get("source", UNION)),
        {token: _choice(path, f"tokenizer: tokens: {token}", rule) for token, rule in tokens.items()},
        multiple,
    )


def _choice(path: Path, place: str, rule: Any) -> TokenChoice:
    """Returns the rule for one token. Raises: InputError."""
    _check_keys(path, place, rule, ("source", "force"))
    source, force = rule.get("source"), rule.get("force", False)
    if type(force) is not bool:
        raise InputError(f"{path}: {place}: force: {force!r:.80}: expected true or false")
    if isinstance(source, str):
        return TokenChoice(source, force=force)
    kind = source.get("kind") if isinstance(source, dict) else None
    if kind == "zero":
        _check_keys(path, place, source, ("kind",))
        return TokenChoice(None, force=force)
    if kind != "model_token":
        raise InputError(
            f"{path}: {place}: source: {source!r:.80}: expected a model, {{kind: zero}} or "
            "{kind: model_token, model: MODEL, token: TEXT}"
        )
    _check_keys(path, place, source, ("kind", "model", "token", "token_id"))
    model, token, number = (source.get(key) for key in ("model", "token", "token_id"))
    is_text, is_number = isinstance(token, str), type(number) is int and number >= 0
    if not isinstance(model, str) or is_text == is_number or None not in (token, number):
        raise InputError(f"{path}: {place}: {source!r:.80}: expected model, and one of token and token_id")
    return TokenChoice(model, token if is_text else number, force)


def _source(path: Path, place: str, source: Any) -> str:
    if not isinstance(source, str) or not source:
        raise InputError(f"{path}: {place}: {source!r:.80}: expected union, base or a model")
    return source


def _check_keys(path: Path, place: str, given: Any, known: tuple[str, ...]) -> None:
    """Raises: InputError where something is no mapping, or has other keys."""
    if not isinstance(given, dict):
        raise InputError(f"{path}: {place}: {given!r:.80}: expected {', '.join(known)}")
    for key in given:
        if key not in known:
            raise InputError(f"{path}: {place}: {key!s:.80} is not handled; handled are {', '.join(known)}")
