"""Verifies an artifact, a zoo or a task vector."""

from pathlib import Path
from typing import NamedTuple

from flexswitch.codecs.errors import InputError
from flexswitch.merging.commands.arguments import Input, checked
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.zoos.verify import verify as verify_path


class Verified(NamedTuple):
    """The path, and what was checked, one line each."""

    path: Path
    lines: list[str]


@checked
def verify(path: Input, *, base: Input | None = None, reporter: Reporter = SILENT) -> Verified:
    """Returns what was checked.

    Raises: ArtifactError that names everything damaged, and other FlexswitchErrors.
    """
    from flexswitch.merging.checkpoints.hub_zoo import zoo_path

    path = zoo_path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; expected an artifact, a zoo or a task vector")
    with reporter.progress(f"verifying {path}", 0) as on_item:
        return Verified(path, verify_path(path, None if base is None else str(base), on_item))
