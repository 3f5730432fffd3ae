"""`flexswitch push`: a zoo to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, size


@command
def push(
    console: Console,
    zoo: Annotated[Path, typer.Argument(help="The zoo to send.")],
    repository: Annotated[str, typer.Argument(help="The repository, org/name; it is made if it is new.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
) -> dict[str, Any]:
    """Send a zoo to the hub in one commit, with a model card; nothing else in its folder is sent.

    Example: flexswitch push zoo org/name --dry-run
    """
    from flexswitch.merging.commands.push import push
    from flexswitch.merging.commands.results import pushed

    made = push(zoo, repository, dry_run=dry_run, reporter=console)
    document = pushed(made)
    total = size(document["bytes"])
    if made.commit is None:
        lines = [f"{name}  {count:,}" for name, count in made.files.items()]
        return console.result(document, *lines, f"{len(lines)} files, {total}, would be sent to {repository}")
    return console.result(document, f"{repository}: {len(made.files)} files, {total}, commit {made.commit}")
