"""`flexswitch verify`: checks what flexswitch wrote."""

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
        str | None, typer.Option(help="Also check that this is its base, byte by byte.", show_default=False)
    ] = None,
) -> dict[str, Any]:
    """Check every checksum, count and hash; exit with 3 and the names of damaged tensors.

    Example: flexswitch verify zoo --base models/base
    """
    from flexswitch.merging.commands.results import verified
    from flexswitch.merging.commands.verify import verify

    made = verify(path, base=base, reporter=console)
    return console.result(verified(made), *made.lines)
