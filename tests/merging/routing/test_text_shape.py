"""The shape of a text against a plain count of its runs of characters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexswitch.merging.routing.text_shape import shape_of, text_shapes

WIDTH = 24


def plain(text):
    """Returns a row of `text_shapes`, computed by integers, one run at a time."""
    shape = "\n" + "".join(plain_class(each) for each in text) + "\n"
    counts = [0] * WIDTH
    for length in (1, 2, 3):
        for start in range(len(shape) - length + 1):
            counts[plain_bucket(shape[start : start + length])] += 1
    total = math.sqrt(sum(counts))
    return [math.sqrt(count) / total for count in counts]


def plain_class(character):
    if character.isupper():
        return "A"
    if character.islower():
        return "a"
    return "0" if character.isdecimal() else character


def plain_bucket(run):
    """Returns the bucket of a run: FNV-1a over its code points, folded."""
    number = 2166136261
    for character in run:
        number = (number ^ ord(character)) * 16777619 % 2**32
    return (number ^ (number >> 15)) % WIDTH


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_shapes_are_square_roots_of_counts_scaled_to_length_1(texts):
    expected = torch.tensor([plain(text) for text in texts], dtype=torch.float64)
    found = text_shapes(texts, WIDTH)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["", "\ud800", "漢字", "🙂", "x" * 5000])
def test_any_text_has_a_shape(text):
    found = text_shapes([text], WIDTH)[0]
    assert found.isfinite().all()
    assert float(found.double().square().sum()) == pytest.approx(1, abs=1e-5)


def test_words_of_the_same_spelling_have_the_same_shape():
    assert shape_of("Born in 1984, Éva!") == "Aaaa aa 0000, Aaa!"
    assert torch.equal(text_shapes(["The cat sat."], 64), text_shapes(["Old men eat."], 64))
    assert not torch.equal(text_shapes(["The cat sat."], 64), text_shapes(["the cat sat ."], 64))


def test_the_buckets_never_change():
    """Stored indexes depend on the buckets."""
    found = text_shapes(["Aa 0."], 8)[0].double().square() * 18
    assert found.round().int().tolist() == [3, 3, 1, 1, 3, 4, 3, 0]
