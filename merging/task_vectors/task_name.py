"""The task that a file or checkpoint is named after."""

from pathlib import Path


def task_name(path: str | Path) -> str:
    """Returns the task that a file or checkpoint is named after: its stem."""
    name = Path(str(path).split("@")[0]).name
    for suffix in (".tv.safetensors", ".safetensors", ".fsw", ".bin", ".pth", ".pt"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name
