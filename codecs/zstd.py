"""zstandard frames without a magic number and a checksum, which the container makes unnecessary."""

from functools import cache

import zstandard

from flexswitch.codecs.errors import DecodeError

# Masks and gaps gain from entropy coding alone; the repeats that higher levels search for are rare.
_LEVEL = 1
_LARGEST_WINDOW = 1 << 23
# A block holds at most 2^17 bytes and takes at least 4.
_MOST_GROWTH = 1 << 15


@cache
def _parameters(level: int) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(
        level,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=True,
        write_checksum=False,
        write_dict_id=False,
    )


def zstd_compress(data: bytes, level: int = _LEVEL) -> bytes:
    """Returns one frame, or no bytes if `data` is empty."""
    if not data:
        return b""
    return zstandard.ZstdCompressor(compression_params=_parameters(level)).compress(data)


def zstd_decompress(frame: bytes, limit: int) -> bytes:
    """Returns the content of a frame, of at most `limit` bytes.

    Raises: DecodeError on an invalid or larger frame, before any memory is allocated for its content.
    """
    if not frame:
        return b""
    try:
        parameters = zstandard.get_frame_parameters(frame, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        if parameters.has_checksum or parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN:
            raise DecodeError("a zstandard frame with a checksum, or without its content size")
        limit = min(limit, _MOST_GROWTH * len(frame))
        if not 0 < parameters.content_size <= limit:
            raise DecodeError(f"a zstandard frame of {parameters.content_size} bytes, expected 1 to {limit}")
        reader = zstandard.ZstdDecompressor(
            format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=_LARGEST_WINDOW
        )
        return reader.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DecodeError(f"not a whole zstandard frame: {error}") from error
