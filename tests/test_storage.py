"""The choice of the smallest stored form."""

import pytest
from hypothesis import given
from sparse_tensors import LAWS, every_codec, sparse_tensor, sparse_tensors

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.registry import CODECS
from flexswitch.codecs.sparse import SparseTensor, sparse_stats
from flexswitch.codecs.storage import choose_codec


@LAWS
@given(sparse=sparse_tensors())
def test_the_chosen_codec_is_the_smallest_of_all(sparse: SparseTensor) -> None:
    stats = sparse_stats(sparse)
    chosen = choose_codec(sparse).estimate_bytes(stats)
    assert chosen == min(codec.estimate_bytes(stats) for codec in every_codec())
    assert chosen == min(choose_codec(sparse, name).estimate_bytes(stats) for name in CODECS)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_asked_for_is_taken(name: str) -> None:
    assert choose_codec(sparse_tensor((64,), [3], [1], 1), name).name == name


def sizes_of(sparse: SparseTensor) -> dict[str, int]:
    """Returns the bytes that each registered codec takes."""
    stats = sparse_stats(sparse)
    return {name: codec.fitted(stats).estimate_bytes(stats) for name, codec in CODECS.items()}


def test_on_equal_sizes_the_first_one_registered_is_taken() -> None:
    whole = sparse_tensor((8,), list(range(8)), [5] * 8, 32)
    sizes = sizes_of(whole)
    assert choose_codec(whole).name == next(name for name in CODECS if sizes[name] == min(sizes.values()))
    empty = sparse_tensor((0,), [], [], 1)
    assert set(sizes_of(empty).values()) == {0}
    assert choose_codec(empty).name == next(iter(CODECS))


def test_an_unknown_codec_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        choose_codec(sparse_tensor((1,), [], [], 1), "flag5")
    known = ", ".join(CODECS)
    assert str(caught.value) == f"no codec is named 'flag5'; did you mean 'flag4'? (known: {known})"
