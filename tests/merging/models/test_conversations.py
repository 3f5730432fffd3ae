"""Chats and prompts with answers: read from files, and as the tokens of a language model."""

import json

import numpy as np
import pytest
from support.checkpoints import message
from support.data_files import WRITERS
from support.tiny_language_models import save_language_base, write_chat_template, write_language_tokenizer

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.conversations import Chat, Completion, last_answer, prompt_text
from flexswitch.merging.models.examples import read_examples

CHAT = [{"role": "user", "content": "word1 word2"}, {"role": "assistant", "content": "word3"}]


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "word1"}, "word1"),
        ({"text": "word1", "messages": CHAT}, "word1"),
        ({"messages": CHAT}, Chat((("user", "word1 word2"), ("assistant", "word3")))),
        ({"prompt": "word1", "completion": " word2"}, Completion("word1", " word2")),
        ({"source": "word1", "target": "", "label": 1}, Completion("word1", "")),
        ({"messages": None, "prompt": "a", "completion": "b"}, Completion("a", "b")),
    ],
)
def test_a_record_holds_a_text_a_chat_or_a_prompt_with_its_answer(tmp_path, record, expected):
    assert read_examples(written(tmp_path / "birds.test.jsonl", [record]), False).inputs == [expected]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_prompts_with_answers_are_columns_of_a_table(tmp_path, suffix):
    path = tmp_path / f"birds.test{suffix}"
    path.write_bytes(WRITERS[suffix]([{"prompt": "word1", "completion": "word2"}]))
    assert read_examples(path, False).inputs == [Completion("word1", "word2")]


def test_chats_are_read_from_parquet(tmp_path):
    path = tmp_path / "birds.test.parquet"
    path.write_bytes(WRITERS[".parquet"]([{"messages": CHAT}]))
    assert read_examples(path, False).inputs == [Chat((("user", "word1 word2"), ("assistant", "word3")))]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "line 1: its 'messages' are not a list of messages"),
        ({"messages": "word1"}, "line 1: its 'messages' are not a list of messages"),
        ({"messages": [{"role": "user"}]}, "line 1: message 1 has no 'role' and 'content' that are strings"),
        ({"messages": [CHAT[0], 3]}, "line 1: message 2 has no 'role' and 'content' that are strings"),
        (
            {"prompt": "a", "completion": "\ud800"},
            "line 1: its text holds \\ud800, which is half of a character",
        ),
    ],
)
def test_damaged_chats_are_refused(tmp_path, record, reason):
    path = written(tmp_path / "birds.test.jsonl", [record])
    assert message(InputError, lambda: read_examples(path, False)) == (
        f"{path}: cannot be read as examples ({reason})"
    )


def test_the_prompt_is_what_comes_before_the_last_answer():
    chat = Chat((("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    asked = Chat(chat.messages[:3])
    assert [prompt_text(each) for each in ("a", Completion("a", "b"), chat, asked)] == [
        "a",
        "a",
        "a\nb\nc",
        "a\nb\nc",
    ]
    assert [last_answer(each) for each in ("a", Completion("a", "b"), chat, asked)] == [None, "b", "d", None]


# --- tokens: [CLS] is 2, [SEP] 3 and the end, wordN N + 4, and any other word 1 ----------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = save_language_base(tmp_path_factory.mktemp("bases") / "gpt2", "gpt2")
    write_chat_template(folder)
    return folder


def adapter_of(base):
    return get_adapter(open_checkpoint(str(base)), "hf-causal-lm")


def rows(batch, name="input_ids"):
    """Returns the rows of a batch's tensor without their padding."""
    lengths = batch["attention_mask"].sum(1)
    return [row[:length].tolist() for row, length in zip(batch[name], lengths, strict=True)]


def test_only_the_answers_of_a_chat_are_scored(base):
    chat = Chat((("user", "word1"), ("assistant", "word2 word3"), ("user", "word4"), ("assistant", "word5")))
    batch = adapter_of(base).batch([chat, "word1", Completion("word1 ", "word2")])
    assert rows(batch) == [
        [2, 1, 5, 3, 2, 1, 6, 7, 3, 2, 1, 8, 3, 2, 1, 9],  # cut at the model's 16 positions
        [2, 5, 3],
        [2, 5, 6, 3],
    ]
    assert rows(batch, "loss_mask") == [
        [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0],
        [1, 1, 0],
        [0, 1, 1, 0],
    ]


def test_a_model_is_asked_what_comes_before_the_last_answer(base):
    asked = Chat((("user", "word1"), ("assistant", "word2"), ("user", "word3")))
    whole = Chat((*asked.messages, ("assistant", "word4")))
    batch = adapter_of(base).prompts([asked, whole, "word1", Completion("word1", "word2")])
    chat = [2, 1, 5, 3, 2, 1, 6, 3, 2, 1, 7, 3, 2, 1]
    assert rows(batch) == [chat, chat, [2, 5, 3], [2, 5]]
    assert sorted(batch) == ["attention_mask", "input_ids"]


def test_an_answer_ends_with_the_end_token_once(base, tmp_path):
    batch = adapter_of(base).batch([Completion("word1", "")])
    assert (rows(batch), rows(batch, "loss_mask")) == ([[2, 5, 3]], [[0, 1, 0]])
    bare = save_language_base(tmp_path / "bare", "gpt2")
    write_language_tokenizer(bare, frames=False)
    batch = adapter_of(bare).batch([Completion("word1 ", "word2")])
    assert (rows(batch), rows(batch, "loss_mask")) == ([[5, 6, 3]], [[1, 1, 0]])


# As of models that think: only the last answer keeps the place of its thought.
THINKING = (
    "{% for message in messages %}[CLS] {{ message['role'] }} "
    "{% if loop.last and message['role'] == 'assistant' %}thought {% endif %}{{ message['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant {% endif %}"
)


def test_a_template_may_leave_a_thought_out_of_earlier_answers(tmp_path):
    base = save_language_base(tmp_path / "base", "gpt2")
    write_chat_template(base, THINKING)
    chat = Chat((("user", "a"), ("assistant", "word1"), ("user", "b"), ("assistant", "word2")))
    batch = adapter_of(base).batch([chat])
    assert rows(batch) == [[2, 1, 1, 3, 2, 1, 5, 3, 2, 1, 1, 3, 2, 1, 1, 6]]
    assert rows(batch, "loss_mask") == [[0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            None,
            "its tokenizer has no chat template, and the examples are chats; copy the model's chat_template.jinja "
            "to it, or give 'prompt' and 'completion'",
        ),
        ("{{ raise_exception('no system') }}", "its chat template fails on a chat (no system)"),
        (
            "{{ messages | length }}{% for message in messages %} {{ message['content'] }}{% endfor %}",
            "its chat template changes what comes before an answer, so the answer's tokens cannot be told; give "
            "'prompt' and 'completion' as the model is to read them",
        ),
    ],
)
def test_a_template_that_cannot_render_the_answers_is_refused(tmp_path, template, reason):
    base = save_language_base(tmp_path / "base", "gpt2")
    if template is not None:
        write_chat_template(base, template)
    chat = Chat((("user", "word1"), ("assistant", "word2")))
    assert message(InputError, lambda: adapter_of(base).batch([chat])) == f"{base}: {reason}"


def test_classifiers_refuse_conversations(tmp_path):
    from support.adapter_bases import TEXT, save_bases

    bases = save_bases(tmp_path)
    adapter = get_adapter(open_checkpoint(str(bases["text"])), TEXT)
    assert message(InputError, lambda: adapter.batch([Completion("a", "b")])) == (
        "the examples are conversations, expected texts: a field 'text'"
    )


def test_conversations_have_digests_and_lengths_of_their_own():
    from flexswitch.merging.models.examples import Examples

    inputs = ["ab", Completion("a", "b"), Completion("ab", ""), Chat((("user", "ab"),)), Chat((("a", "ab"),))]
    assert len({Examples([each], None).digest() for each in inputs}) == len(inputs)
    assert Examples([*inputs, "a"], None).by_length(np.arange(6)).tolist() == [5, 0, 1, 2, 3, 4]
