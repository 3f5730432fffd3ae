"""The task that a file or checkpoint is named after."""

from pathlib import Path

from flexswitch.codecs.format.hub_id import is_hub_id

SUFFIX = ".tv.safetensors"  # of task vector files


def task_name(path: str | Path) -> str:
    """Returns the task that a file or checkpoint is named after: its stem, without a hub id's revision."""
    name = Path(path).name
    for suffix in (SUFFIX, ".safetensors", ".fsw", ".bin", ".pth.tar", ".pth", ".ckpt", ".pt"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    if is_hub_id(str(path)) and not Path(path).exists():
        return name.split("@")[0]
    return name
