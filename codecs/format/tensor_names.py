"""The one rule on `/` in a tensor's name, so that none leads a writer out of its output folder."""

import re
from collections.abc import Iterable
from pathlib import Path

from flexswitch.codecs.errors import FlexswitchError
from flexswitch.codecs.format.records import ModelRecord

# The folder of a module beside a sentence-transformers model.
MODULE_FOLDER = re.compile(r"\d{1,3}_\w{1,64}", re.ASCII)
_IN_MODULE = re.compile(MODULE_FOLDER.pattern + "/[^/]+", re.ASCII | re.DOTALL)
# Extras that are files, and not tensors: `file/NAME` and `entries/NAME`.
WHOLE, ENTRIES = "file/", "entries/"


def is_side_file(extra: str) -> bool:
    """Returns whether an extra is a file and not a tensor."""
    return extra.startswith((WHOLE, ENTRIES))


def check_tensor_names(
    source: str | Path, names: Iterable[str], error: type[FlexswitchError], called: str = "tensor"
) -> None:
    """Checks that names have no `/`, except the one between a module's folder and its tensor.

    called: what the names are, for the message. Raises: `error` at the first other name.

    >>> check_tensor_names("x", ["linear.weight", "2_Dense/linear.weight"], FlexswitchError)
    """
    for name in names:
        if "/" in name and not _IN_MODULE.fullmatch(name):
            raise error(
                f"{source}: {called} '{name[:200]}' has a '/', which only a module's tensor may have, as in "
                "2_Dense/linear.weight; rename it if you trust the file"
            )


def check_stored_names(
    path: Path, names: Iterable[str], extras: Iterable[str], model: ModelRecord, error: type[FlexswitchError]
) -> None:
    """Checks the names that a task vector's file stores, and those that its prefix gives the base's tensors.

    Raises: `error`.
    """
    check_tensor_names(path, names, error)
    check_tensor_names(path, (extra for extra in extras if not is_side_file(extra)), error, "extra")
    check_tensor_names(path, [f"{model.prefix}weight"], error, "with its prefix, a tensor")
