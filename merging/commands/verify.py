"""Verifies an artifact, a zoo or a task vector."""

from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.zoos.verify import verify as verify_path


def verify(path: str | Path, *, base: str | Path | None = None, reporter: Reporter = SILENT) -> list[str]:
    """Returns what was checked, one line each.

    Raises: ArtifactError that names everything damaged, and other FlexswitchErrors.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; expected an artifact, a zoo or a task vector")
    with reporter.progress(f"verifying {path}", 0) as on_item:
        return verify_path(path, None if base is None else str(base), on_item)
