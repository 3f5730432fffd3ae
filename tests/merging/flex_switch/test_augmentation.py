"""Inputs made of two exemplars each: what they are made of, how many there are, that the seed decides all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import LAWS

from flexswitch.merging.flex_switch.augmentation import augment

TEXTS = [
    " ".join(f"{letter}{place}" for place in range(length))
    for letter, length in zip("abcde", (8, 1, 20, 5, 12), strict=True)
]


def parts_of(text: str) -> tuple[list[str], list[str]]:
    """Returns the words of a text up to where the letter changes, or the numbers fall, and those after."""
    words = text.split()
    for place in range(1, len(words)):
        before, after = words[place - 1], words[place]
        if before[0] != after[0] or int(after[1:]) <= int(before[1:]):
            return words[:place], words[place:]
    return words, []


@LAWS
@given(count=st.integers(0, 40), seed=st.integers(0, 99))
def test_a_text_is_the_first_words_of_one_and_the_last_words_of_another(count: int, seed: int) -> None:
    found = augment(TEXTS, count, seed)
    assert len(found) == count
    lengths = {text[0]: len(text.split()) for text in TEXTS}
    for text in found:
        assert any(
            text.split() == one.split()[:first] + two.split()[last:]
            for one in TEXTS
            for two in TEXTS
            for first in range(lengths[one[0]] + 1)
            for last in range(lengths[two[0]] + 1)
            # Each gives between a quarter and three quarters, and together they give about one text.
            if 0.25 * lengths[one[0]] - 0.5 <= first <= 0.75 * lengths[one[0]] + 0.5
            and abs(first / lengths[one[0]] - last / lengths[two[0]])
            <= 0.5 / lengths[one[0]] + 0.5 / lengths[two[0]]
        )


def test_many_texts_are_mixed_from_all_and_cut_in_many_places() -> None:
    found = augment(TEXTS, 400, 0)
    pairs = {(head[0][0], tail[0][0]) for head, tail in map(parts_of, found) if head and tail}
    assert len(pairs) >= 20  # of 25
    cuts = {len(head) for head, tail in map(parts_of, found) if head[0][0] == "c" and tail}
    assert set(range(6, 15)) <= cuts


def test_an_array_is_a_mean_of_two_weighted_at_random() -> None:
    pictures = np.random.default_rng(0).normal(size=(6, 3, 5, 5)).astype(np.float32)
    found = augment(pictures, 50, 1)
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.dtype) == ((50, 3, 5, 5), np.float32)
    weights = set()
    for picture in found:
        fits = []
        for one in pictures:
            for two in pictures:
                apart = (one - two).astype(np.float64).ravel()
                square = apart @ apart
                weight = 0.5 if square == 0 else float(apart @ (picture - two).ravel() / square)
                wrong = np.abs(weight * one + (1 - weight) * two - picture).max()
                if wrong < 1e-5:
                    fits.append(weight)
        assert any(0.249 < weight < 0.751 for weight in fits)
        weights.add(round(fits[0], 3))
    assert len(weights) > 20


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_whole_numbers_are_rounded_and_stay_in_range(dtype: type[np.integer]) -> None:
    ends = np.iinfo(np.uint8 if dtype == np.uint8 else np.int8)
    pixels = np.random.default_rng(0).integers(ends.min, ends.max, (5, 4, 4), endpoint=True).astype(dtype)
    pixels[0], pixels[1] = ends.max, ends.min
    found, exact = augment(pixels, 60, 3), augment(pixels.astype(np.float32), 60, 3)
    assert isinstance(found, np.ndarray)
    assert isinstance(exact, np.ndarray)
    assert found.dtype == dtype
    assert found.astype(int).tolist() == np.rint(exact).astype(int).tolist()
    assert np.abs(found - exact).max() > 0.3
    lows, highs = pixels.min(axis=(1, 2)), pixels.max(axis=(1, 2))
    assert found.min() >= lows.min()
    assert found.max() <= highs.max()


@pytest.mark.parametrize("inputs", [TEXTS, np.arange(24, dtype=np.float32).reshape(6, 4)])
def test_the_seed_alone_decides_and_the_inputs_stay_as_they_are(inputs: list[str] | np.ndarray) -> None:
    before = list(inputs) if isinstance(inputs, list) else inputs.copy()
    one, two, other = augment(inputs, 30, 5), augment(inputs, 30, 5), augment(inputs, 30, 6)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert np.array_equal(inputs, before)


@pytest.mark.parametrize("inputs", [["one two three"], np.ones((1, 3), np.float32)])
def test_one_input_alone_is_mixed_with_itself(inputs: list[str] | np.ndarray) -> None:
    found = augment(inputs, 7, 0)
    assert all(np.array_equal(each, inputs[0]) for each in found)


def test_texts_of_no_or_one_word_can_be_mixed() -> None:
    found = augment(["", "word"], 40, 0)
    assert len(found) == 40
    assert set(found) <= {"", "word", "word word"}
