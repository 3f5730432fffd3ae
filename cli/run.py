"""`flexswitch run`: a recipe's steps in order, stopping at the first failure."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console


@command
def run(
    console: Console,
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file of named steps.")],
) -> dict[str, Any]:
    """Run a recipe's steps in order. Paths are relative to the current folder.

    Example: flexswitch run recipes/digits.yaml
    """
    import contextlib
    import shlex
    import sys

    from flexswitch.cli.main import app
    from flexswitch.codecs.errors import ExitStatus, InputError
    from flexswitch.recipes.expectations import check_expectations
    from flexswitch.recipes.recipe import command_lines, read_recipe

    steps = command_lines(read_recipe(recipe), app, recipe)
    results = []
    for number, step in enumerate(steps, 1):
        words = [*step.arguments, *(["--quiet"] if console.quiet else [])]
        console.note(f"step {number} of {len(steps)}: {step.name}")
        console.note("$ " + shlex.join(["flexswitch", *words]))
        try:
            with contextlib.redirect_stdout(sys.stderr if console.as_json else sys.stdout):
                document = app(words, standalone_mode=False)
        except typer.TyperException as error:
            problem = error.format_message().replace("Value error, ", "")
            raise InputError(f"{recipe}: step '{step.name}': {problem}") from error
        if document == ExitStatus.INTERRUPTED:
            raise KeyboardInterrupt
        check_expectations(step, document, recipe)
        results.append({"name": step.name, "arguments": words, "result": document})
    return console.result({"recipe": str(recipe), "steps": results}, f"{recipe}: {len(steps)} steps done")
