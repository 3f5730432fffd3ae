"""The answers of models of words, masks and spans, compared with a plain search over their logits."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import message
from support.families import FAMILIES, save_family
from support.tiny_models import MAX_TOKENS

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.conversations import Pair

IDS = {"word0": 4, "word1": 5, "word2": 6, "word3": 7, "word4": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = next(each for each in FAMILIES if each.name == "masked language model")
    return save_family(family, tmp_path_factory.mktemp("base"))["base"]


def adapter_named(name, base):
    return get_adapter(open_checkpoint(base), name)


def test_a_word_has_the_class_of_its_first_token_and_none_where_it_was_cut(base):
    adapter = adapter_named("hf-token-classification", base)
    texts = ["word1  word2", " ".join(["word1"] * (MAX_TOKENS + 3))]
    batch = adapter.batch(texts)
    logits = torch.randn(*batch["input_ids"].shape, 3, generator=torch.Generator().manual_seed(0))
    classes = logits.argmax(-1).tolist()
    kept = MAX_TOKENS - 2  # without [CLS] and [SEP]
    assert adapter.answers(logits, batch, texts) == [classes[0][1:3], classes[1][1 : kept + 1] + [None] * 5]


def test_a_masked_model_answers_the_token_at_the_first_mask(base):
    adapter = adapter_named("hf-masked-lm", base)
    texts = ["word1 word0 word0", "word0"]  # word0 is the mask
    batch = adapter.batch(texts)
    logits = torch.zeros(*batch["input_ids"].shape, 40)
    logits[0, 2, IDS["word3"]] = logits[1, 1, IDS["word4"]] = 1.0
    assert adapter.answers(logits, batch, texts) == ["word3", "word4"]
    texts = ["word0", "word1"]
    batch = adapter.batch(texts)
    logits = torch.zeros(*batch["input_ids"].shape, 40)
    assert message(InputError, lambda: adapter.answers(logits, batch, texts)) == (
        "the text 'word1' has no word0, which a masked language model is to fill"
    )


def test_a_span_starts_before_it_ends_and_lies_in_the_context(base):
    adapter = adapter_named("hf-question-answering", base)
    pairs = [Pair("word1", "word2 word3  word4"), Pair("word1 word1", "word2 word3")]
    batch = adapter.batch(pairs)
    tokens = batch["input_ids"].shape[1]
    logits = torch.zeros(2, tokens, 2)
    logits[0, 0] = 9.0  # the question
    logits[0, 3, 0], logits[0, 1, 1] = 5.0, 5.0  # starts at word4, ends at word2: no span
    logits[0, 2, 0], logits[0, 3, 1] = 1.0, 1.0
    ids = batch["input_ids"][0].tolist()
    first, last = ids.index(IDS["word2"]), ids.index(IDS["word4"])
    best = max(
        ((start, end) for start in range(first, last + 1) for end in range(start, last + 1)),
        key=lambda span: float(logits[0, span[0], 0] + logits[0, span[1], 1]),
    )
    places = {first: (0, 5), first + 1: (6, 11), last: (13, 18)}
    expected = pairs[0].second[places[best[0]][0] : places[best[1]][1]]
    assert adapter.answers(logits, batch, pairs)[0] == expected
    assert adapter.answers(logits, batch, pairs)[1] in ("word2", "word3", "word2 word3")


def test_a_question_without_a_context_is_refused(base):
    adapter = adapter_named("hf-question-answering", base)
    assert message(InputError, lambda: adapter.batch(["word1"])) == (
        "the question 'word1' has no context; give it as the field 'text_pair'"
    )


def test_texts_and_pairs_share_a_batch(base):
    adapter = adapter_named("hf-sequence-classification", base)
    inputs = ["word1 word2", Pair("word1", "word2 word3"), "word4"]
    together = adapter.batch(inputs)
    for row, each in enumerate(inputs):
        alone = adapter.batch([each])["input_ids"][0]
        marks = together["attention_mask"][row] == 1
        assert torch.equal(together["input_ids"][row][marks], alone)
    assert adapter.batch([Pair("word1", "word2")])["input_ids"].tolist() == [[IDS["word1"], IDS["word2"]]]
