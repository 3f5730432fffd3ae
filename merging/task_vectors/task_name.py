"""The task that a file or checkpoint is named after."""

import os
from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.hub_id import is_hub_id

SUFFIX = ".tv.safetensors"  # of task vector files


def task_name(path: str | Path) -> str:
    """Returns the task that a file or checkpoint is named after: its stem, without a hub id's revision.

    Of a path such as `.`, it is the name of the folder. Raises: InputError where there is none.
    """
    name = Path(path).name
    if name in ("", ".."):
        name = Path(os.path.abspath(path)).name
    if not name:
        raise InputError(f"{path}: has no name for its task; give one: NAME={path}")
    for suffix in (SUFFIX, ".safetensors", ".fsw", ".bin", ".pth.tar", ".pth", ".ckpt", ".pt"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    if is_hub_id(str(path)) and not Path(path).exists():
        return name.split("@")[0]
    return name
