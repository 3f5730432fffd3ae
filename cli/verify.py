"""`flexswitch verify`: whether a file can be trusted."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console


@command
def verify(
    console: Console,
    path: Annotated[Path, typer.Argument(help="An artifact (.fsw), a zoo or a task vector.")],
    base: Annotated[
        str | None, typer.Option(help="Check too that this is its base, every byte.", show_default=False)
    ] = None,
) -> dict[str, Any]:
    """Check every checksum, count and hash; exit 3 naming the tensors that are damaged.

    Example: flexswitch verify zoo --base models/base
    """
    from flexswitch.merging.commands.verify import verify

    lines = verify(path, base=base, reporter=console)
    return console.result({"path": str(path), "ok": True, "checked": lines}, *lines)
