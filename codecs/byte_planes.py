"""Stores numbers exactly, with the bytes of equal significance side by side.

The high bytes of floating-point weights, which hold sign and exponent, repeat a lot; the low bytes look
random. Apart, the high ones compress well.
"""

import numpy as np

from flexswitch.codecs.codec import PayloadReader
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.zstd import zstd_compress, zstd_decompress

_SIZE = np.dtype("<u8")
_TEXT_LEVEL = 19  # single bytes are files, and small; the planes of weights gain nothing from a search


def encode_planes(data: bytes, width: int) -> bytes:
    """Returns numbers of `width` bytes (1 to 8) as byte planes, each in a zstandard frame if that is smaller.

    A byte says which planes are frames (bit i: plane i, the lowest bytes first). The size of each frame
    follows, then the planes.
    """
    planes = np.frombuffer(data, np.uint8).reshape(-1, width).T  # (width, number)
    flags, sizes, stored = 0, [], []
    for index, plane in enumerate(planes):
        plain = plane.tobytes()
        frame = zstd_compress(plain, _TEXT_LEVEL) if width == 1 else zstd_compress(plain)
        is_frame = len(frame) + _SIZE.itemsize < len(plain)
        if is_frame:
            flags |= 1 << index
            sizes.append(len(frame))
        stored.append(frame if is_frame else plain)
    return bytes([flags]) + np.array(sizes, _SIZE).tobytes() + b"".join(stored)


def decode_planes(data: bytes, width: int, count: int) -> bytes:
    """Returns the `count` numbers of `width` bytes that `encode_planes` stored. Raises: DecodeError."""
    reader = PayloadReader(data)
    (flags,) = reader.take(1)
    if flags >> width:
        raise DecodeError(f"flags {flags:#x} of byte planes, expected {width} bits")
    sizes = np.frombuffer(reader.take(flags.bit_count() * _SIZE.itemsize), _SIZE).tolist()
    planes = []
    for index in range(width):
        is_frame = flags >> index & 1
        plane = zstd_decompress(reader.take(sizes.pop(0)), count) if is_frame else reader.take(count)
        if len(plane) != count:
            raise DecodeError(f"a byte plane of {len(plane)} bytes, expected {count}")
        planes.append(np.frombuffer(plane, np.uint8))
    reader.finish()
    return np.stack(planes, axis=1).tobytes()
