"""The messages of codecs on wrong bytes, names and settings."""

import pytest
import zstandard
from support.sparse_tensors import FRAMED

from flexswitch.codecs.errors import DecodeError, UsageError
from flexswitch.codecs.registry import CODECS, get_codec, stored_codec
from flexswitch.codecs.sparse import SparseLayout
from flexswitch.codecs.zstd import zstd_compress


@pytest.mark.parametrize(
    ("name", "chosen", "data", "layout", "message"),
    [
        ("bitmask", {}, "01", SparseLayout((9,), 1, 1), "1 bytes, expected at least 2"),
        ("bitmask", {}, "010001", SparseLayout((9,), 2, 1), "1 entries are marked as kept, expected 2"),
        ("bitmask", {}, "01000100", SparseLayout((9,), 1, 1), "4 bytes, expected 3"),
        ("bitmask", {}, "010201", SparseLayout((9,), 2, 1), "a bit is set after the last entry"),
        ("bitmask", {}, "010002", SparseLayout((9,), 1, 1), "a bit is set after the last value"),
        ("flag4", {}, "010000", SparseLayout((9,), 1, 1), "a flagged group keeps no entry"),
        ("flag4", {}, "040201", SparseLayout((9,), 1, 1), "a bit is set after the last entry"),
        ("raw", {}, "000300", SparseLayout((3,), 1, 1), "level 2, expected one below 2"),
        ("raw", {}, "00000201", SparseLayout((2,), 1, 8), "level 257, expected one below 256"),
        (
            "grouped-coo",
            {"group": 4},
            "01010001",
            SparseLayout((9,), 2, 1),
            "the kept positions do not rise, or exceed the last entry",
        ),
        (
            "grouped-coo",
            {"group": 4},
            "04000101",
            SparseLayout((9,), 1, 1),
            "the kept positions do not rise, or exceed the last entry",
        ),
        ("rice", {}, "0100", SparseLayout((9,), 1, 0), "a zero byte follows the last gap"),
        ("rice", {}, "00", SparseLayout((9,), 0, 0), "a zero byte follows the last gap"),
        ("rice", {}, "03", SparseLayout((9,), 1, 0), "2 entries are marked as kept, expected 1"),
        ("rice", {}, "0004", SparseLayout((9,), 1, 0), "a gap exceeds the last entry"),
        ("rice", {}, "0002", SparseLayout((9,), 1, 0), "the gaps exceed the last entry"),
        ("rice", {"remainder": 2}, "0104", SparseLayout((9,), 1, 0), "the gaps exceed the last entry"),
        ("rice", {"remainder": 2}, "0401", SparseLayout((9,), 1, 0), "a bit is set after the last value"),
        ("rice", {}, "0201", SparseLayout((9,), 1, 1), "a bit is set after the last value"),
        ("context", {}, "", SparseLayout((9,), 1, 1), "the coded bits do not give 1 of 9 entries"),
        ("context", {}, "00", SparseLayout((9,), 0, 1), "1 bytes, expected 0"),
        ("context", {}, "0000ffffff", SparseLayout((9,), 1, 1), "the coded bits do not give 1 of 9 entries"),
        ("context", {}, "01", SparseLayout((9,), 1, 16), "1 bytes, expected at least 2"),
        ("context", {}, "0000", SparseLayout((9,), 1, 16), "a kept value is zero"),
    ],
)
def test_wrong_bytes_are_reported_in_words(
    name: str, chosen: dict[str, int], data: str, layout: SparseLayout, message: str
) -> None:
    with pytest.raises(DecodeError) as caught:
        stored_codec(name, chosen).decode(bytes.fromhex(data), layout)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("bitmask-zstd", "0001", "1 entries are marked as kept, expected 2"),
        ("bitmask-zstd", "", "0 bytes, expected 2"),
        ("bitmask-zstd", "03", "1 bytes, expected 2"),
        ("bitmask-zstd", "0102", "a bit is set after the last entry"),
        ("bitmask-zstd", "030000", "a zstandard frame of 3 bytes, expected 1 to 2"),
        ("gaps-zstd", "", "the gaps do not lead to 2 of 9 entries"),
        ("gaps-zstd", "00", "the gaps do not lead to 2 of 9 entries"),
        ("gaps-zstd", "0008", "the gaps do not lead to 2 of 9 entries"),
        ("gaps-zstd", "00ff", "the gaps do not lead to 2 of 9 entries"),
        ("gaps-zstd", "000000", "a zstandard frame of 3 bytes, expected 1 to 2"),
    ],
)
def test_a_frame_with_wrong_content_is_reported_in_words(name: str, held: str, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        get_codec(name)().decode(zstd_compress(bytes.fromhex(held)), SparseLayout((9,), 2, 0))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", FRAMED)
def test_what_is_no_whole_frame_is_reported_with_the_reason(name: str) -> None:
    frame = zstd_compress(b"\3\0")  # of one block, which holds the two bytes as they are
    for data in (frame[:1], frame[:-1], frame + b"\0", b"\xff" * 9):
        with pytest.raises(DecodeError, match=r"^not a whole zstandard frame: [^\n]+$"):
            get_codec(name)().decode(data, SparseLayout((9,), 2, 0))


@pytest.mark.parametrize("name", FRAMED)
def test_a_frame_that_holds_nothing_or_does_not_tell_is_refused(name: str) -> None:
    style = {"format": zstandard.FORMAT_ZSTD1_MAGICLESS, "write_content_size": True}
    nothing = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(**style)
    ).compress(b"")
    style["write_content_size"] = False
    untold = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(**style)
    ).compress(b"\3\0")
    empty = "a zstandard frame of 0 bytes, expected 1 to 2"
    silent = "a zstandard frame with a checksum, or without its content size"
    for frame, expected in ((nothing, empty), (nothing + b"\0", empty), (untold, silent)):
        with pytest.raises(DecodeError) as caught:
            get_codec(name)().decode(frame, SparseLayout((9,), 2, 0))
        assert str(caught.value) == expected


def test_an_unknown_codec_is_named_with_the_nearest_one() -> None:
    known = ", ".join(CODECS)
    with pytest.raises(UsageError) as asked:
        get_codec("bitmsk")
    assert str(asked.value) == f"no codec is named 'bitmsk'; did you mean 'bitmask'? (known: {known})"
    with pytest.raises(DecodeError) as stored:
        stored_codec("arithmetic", {})
    expected = f"no codec is named 'arithmetic' (known: {known}); a newer flexswitch may know it"
    assert str(stored.value) == expected


@pytest.mark.parametrize("chosen", [{"grup": 4}, {"name": 4}, {"group": 4, "more": 1}])
@pytest.mark.parametrize("name", CODECS)
def test_settings_that_a_codec_does_not_have_raise_a_decode_error(name: str, chosen: dict[str, int]) -> None:
    with pytest.raises(DecodeError) as caught:
        stored_codec(name, chosen)
    assert str(caught.value).startswith(f"the codec {name} does not accept the settings {chosen}: ")


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("grouped-coo", {"group": 5}, "group 5, expected one of (4, 8, 16, 32, 64, 128, 256)"),
        ("grouped-coo", {"group": 512}, "group 512, expected one of (4, 8, 16, 32, 64, 128, 256)"),
        ("rice", {"remainder": -1}, "remainder -1, expected one of 0..20"),
        ("rice", {"remainder": 21}, "remainder 21, expected one of 0..20"),
        ("context", {"patterns": 0}, "patterns 0, expected 1, 2, 4, 8 or 16"),
        ("context", {"patterns": 3}, "patterns 3, expected 1, 2, 4, 8 or 16"),
        ("context", {"patterns": 32}, "patterns 32, expected 1, 2, 4, 8 or 16"),
    ],
)
def test_a_setting_outside_its_range_is_reported(name: str, chosen: dict[str, int], message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        stored_codec(name, chosen)
    assert str(caught.value) == f"the codec {name} does not accept the settings {chosen}: {message}"
