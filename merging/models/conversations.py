"""Examples of texts: one text, two that belong together, a prompt with its answer, or a chat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The fields of a record that hold a prompt and its answer.
_PAIRS = (("prompt", "completion"), ("source", "target"))
TEXT, TEXT_PAIR, MESSAGES = "text", "text_pair", "messages"
ASSISTANT = "assistant"
FIELDS = (TEXT, TEXT_PAIR, MESSAGES, *(name for pair in _PAIRS for name in pair))


@dataclass(frozen=True)
class Pair:
    """Two texts that belong together, such as a premise and a hypothesis, or a question and its context."""

    first: str
    second: str

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __str__(self) -> str:
        return f"{self.first}\n{self.second}"


@dataclass(frozen=True)
class Completion:
    """A question, or the source text of an encoder-decoder, and the answer to it."""

    question: str
    answer: str

    def __len__(self) -> int:
        return len(self.question) + len(self.answer)

    def __str__(self) -> str:
        return self.question + self.answer


@dataclass(frozen=True)
class Chat:
    """The messages of a chat, each (role, content); those of the role "assistant" are answers."""

    messages: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return sum(len(content) for _, content in self.messages)

    def __str__(self) -> str:
        return "\n".join(content for _, content in self.messages)

    @property
    def question(self) -> "Chat":
        """The chat before its last message, if that is an answer."""
        ends = bool(self.messages) and self.messages[-1][0] == ASSISTANT
        return Chat(self.messages[:-1]) if ends else self


Conversation = Completion | Chat
Text = str | Pair | Conversation


def prompt_text(text: Text) -> str:
    """Returns the characters of what a model is asked; of a plain text all."""
    return str(text.question) if isinstance(text, Conversation) else str(text)


def last_answer(text: Text) -> str | None:
    """Returns the answer that a model is to generate after the prompt, None where there is none."""
    if isinstance(text, Completion):
        return text.answer
    if isinstance(text, Chat) and text.question is not text:
        return text.messages[-1][1]
    return None


def text_of(values: Mapping[str, Any], place: str) -> Text:
    """Returns the text, pair or chat that a record's fields hold; place: of the record, for messages.

    Raises: ValueError if it has none of them, or they hold something else.
    """
    found = _text_of(values, place)
    for part in _strings(found):
        try:
            part.encode()
        except UnicodeEncodeError as reason:
            code = f"\\u{ord(part[reason.start]):04x}"
            raise ValueError(f"{place}: its text holds {code}, which is half of a character") from reason
    return found


def _text_of(values: Mapping[str, Any], place: str) -> Text:
    if isinstance(text := values.get(TEXT), str):
        second = values.get(TEXT_PAIR)
        if second is not None and not isinstance(second, str):
            raise ValueError(f"{place} has a field 'text_pair' that is no string")
        return text if second is None else Pair(text, second)
    if values.get(MESSAGES) is not None:
        return Chat(_messages(values[MESSAGES], place))
    for names in _PAIRS:
        question, answer = (values.get(name) for name in names)
        if isinstance(question, str) and isinstance(answer, str):
            return Completion(question, answer)
    raise ValueError(
        f"{place} has no field 'text' that is a string, nor 'messages', 'prompt' and 'completion', or "
        "'source' and 'target'"
    )


def _messages(messages: Any, place: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"{place}: its 'messages' are not a list of messages")
    found = []
    for number, message in enumerate(messages, 1):
        held = message if isinstance(message, Mapping) else {}
        role, content = held.get("role"), held.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"{place}: message {number} has no 'role' and 'content' that are strings")
        found.append((role, content))
    return tuple(found)


def _strings(text: Text) -> Sequence[str]:
    if isinstance(text, str):
        return [text]
    if isinstance(text, Pair):
        return [text.first, text.second]
    if isinstance(text, Completion):
        return [text.question, text.answer]
    return [part for message in text.messages for part in message]
