"""The registry of codecs. To add one, add its file, its line here and its golden file."""

from flexswitch.codecs.bitmask import Bitmask
from flexswitch.codecs.bitmask_zstd import BitmaskZstd
from flexswitch.codecs.codec import Codec
from flexswitch.codecs.context import Context
from flexswitch.codecs.errors import DecodeError, UsageError, unknown_name
from flexswitch.codecs.flag4 import Flag4
from flexswitch.codecs.gaps_zstd import GapsZstd
from flexswitch.codecs.grouped_coo import GroupedCoo
from flexswitch.codecs.raw import Raw
from flexswitch.codecs.rice import Rice

CODECS: dict[str, type[Codec]] = {
    codec.name: codec for codec in (Bitmask, BitmaskZstd, GapsZstd, Rice, Context, GroupedCoo, Flag4, Raw)
}


def get_codec(name: str) -> type[Codec]:
    """Returns the codec class of that name. Raises: UsageError."""
    if name not in CODECS:
        raise UsageError(unknown_name("codec", name, CODECS))
    return CODECS[name]


def stored_codec(name: str, settings: dict[str, int]) -> Codec:
    """Returns the codec that a file names. Raises: DecodeError on an unknown name or setting."""
    if name not in CODECS:
        raise DecodeError(unknown_name("codec", name, CODECS) + "; a newer flexswitch may know it")
    try:
        return CODECS[name](**settings)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"the codec {name} does not accept the settings {settings}: {error}") from error
