"""`flexswitch verify`: whether a file can be trusted."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flexswitch.cli.console import Console
from flexswitch.cli.options import Debug, Json, Quiet


def verify(
    path: Annotated[Path, typer.Argument(help="An artifact (.fsw), a zoo or a task vector.")],
    base: Annotated[
        str | None, typer.Option(help="Check too that this is its base, every byte.", show_default=False)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Check every checksum, count and hash; exit 3 naming the tensors that are damaged.

    Example: flexswitch verify zoo --base models/base
    """
    from flexswitch.codecs.errors import InputError
    from flexswitch.merging.zoos.verify import verify as verify_path

    console = Console(quiet, json)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; expected an artifact, a zoo or a task vector")
    with console.progress(f"verifying {path}", 0) as step:
        lines = verify_path(path, base, step)
    return console.result({"path": str(path), "ok": True, "checked": lines}, *lines)
