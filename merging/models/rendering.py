"""Conversations as the tokens that a language model takes, and which of them belong to its answers."""

from typing import Any, NamedTuple

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.conversations import ASSISTANT, Chat, Completion, Conversation


class Rendered(NamedTuple):
    """Tokens of a text, and whether each belongs to an answer."""

    tokens: list[int]
    answers: list[bool]


def rendered(tokenizer: Any, text: Conversation, limit: int, source: str) -> Rendered:
    """Returns up to `limit` tokens of a conversation.

    A completion ends with the tokenizer's end-of-text token, a chat's answers as its template ends them.
    Raises: InputError, which names `source`, the model, if the tokenizer cannot render it.
    """
    if isinstance(text, Completion):
        span = (len(text.question), len(str(text)))
        found = _ended(_tokens(tokenizer, str(text), [span], True, limit, source), tokenizer.eos_token_id)
    else:
        whole, spans = _chat_spans(tokenizer, text, source)
        found = _tokens(tokenizer, whole, spans, False, limit, source)
    return Rendered(found.tokens[:limit], found.answers[:limit])


def rendered_prompt(tokenizer: Any, text: Conversation, limit: int, source: str) -> list[int]:
    """Returns up to `limit` tokens of what a model answers. Raises: as above."""
    options = {"truncation": True, "max_length": limit}
    if isinstance(text, Chat):
        prompt = _template(tokenizer, text.question, source, add_generation_prompt=True)
        return list(tokenizer(prompt, add_special_tokens=False, **options)["input_ids"])
    tokens = list(tokenizer(text.question, **options)["input_ids"])
    return tokens[:-1] if tokens[-1:] == [tokenizer.eos_token_id] else tokens


def _tokens(
    tokenizer: Any, text: str, spans: list[tuple[int, int]], special: bool, limit: int, source: str
) -> Rendered:
    """Returns a text's tokens; those that end within one of the spans of characters belong to an answer."""
    if not tokenizer.is_fast:
        raise InputError(
            f"{source}: its tokenizer does not tell which characters a token is of; give texts, or copy a "
            "tokenizer.json to it"
        )
    encoded = tokenizer(
        text, add_special_tokens=special, return_offsets_mapping=True, truncation=True, max_length=limit
    )
    answers = [
        any(start < end <= stop for start, stop in spans) and first < end
        for first, end in encoded["offset_mapping"]
    ]
    return Rendered(list(encoded["input_ids"]), answers)


def _ended(found: Rendered, end: int | None) -> Rendered:
    """Returns tokens with the end-of-text token after them, as a part of the answer."""
    if end is None:
        return found
    if found.tokens[-1:] == [end]:
        return Rendered(found.tokens, [*found.answers[:-1], True])
    return Rendered([*found.tokens, end], [*found.answers, True])


def _chat_spans(tokenizer: Any, chat: Chat, source: str) -> tuple[str, list[tuple[int, int]]]:
    """Returns a chat's text, and the characters of its answers as (start, stop).

    An answer starts after the prompt to generate it, and stops where the template ends it. A template may
    leave out parts of an answer that others follow, such as an empty thought, but not change what stays.
    """
    whole = _template(tokenizer, chat, source)
    spans = []
    for number, (role, content) in enumerate(chat.messages):
        if role != ASSISTANT:
            continue
        before = _template(tokenizer, Chat(chat.messages[:number]), source, add_generation_prompt=True)
        until = _template(tokenizer, Chat(chat.messages[: number + 1]), source)
        kept = content.strip()
        ended = until[max(0, until.rfind(kept)) :]  # the answer and what ends it
        found = whole.find(ended, len(before))
        if not whole.startswith(before) or found < 0:
            raise InputError(
                f"{source}: its chat template changes what comes before an answer, so the answer's tokens "
                "cannot be told; give 'prompt' and 'completion' as the model is to read them"
            )
        spans.append((len(before), found + len(ended)))
    return whole, spans


def _template(tokenizer: Any, chat: Chat, source: str, add_generation_prompt: bool = False) -> str:
    if not tokenizer.chat_template:
        raise InputError(
            f"{source}: its tokenizer has no chat template, and the examples are chats; copy the model's "
            "chat_template.jinja to it, or give 'prompt' and 'completion'"
        )
    messages = [{"role": role, "content": content} for role, content in chat.messages]
    try:
        found: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as reason:  # a template is a program, and raises what it wants
        shown = " ".join(str(reason).split())[:200]
        raise InputError(f"{source}: its chat template fails on a chat ({shown})") from reason
    return found
