"""`flexswitch run`: a recipe's steps, each once, in the order of what they read and write."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console

if TYPE_CHECKING:
    from flexswitch.recipes.graph import Graph
    from flexswitch.recipes.prepared import Prepared
    from flexswitch.recipes.schedule import Outcome
    from flexswitch.recipes.selection import Choice


@command
def run(
    console: Console,
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe, a YAML file of named steps.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of steps at once, each in its process.")] = 1,
    on: Annotated[Literal["local", "ray"], typer.Option(help="Where the steps run.")] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="The Ray cluster: auto, or HOST:PORT.", show_default="a Ray of this machine's own"),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Run the I-th of N shares of the steps that wait for no other share; auto takes both from "
            "SLURM or SkyPilot. Then run the recipe without it, for the steps that join them.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which steps would run, and why.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Run nothing; exit with 4 unless all is as the lock says.")
    ] = False,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Refuse inputs and outputs other than those of the lock.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run all steps, those too that are done.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="STEP", help="Run this step; repeatable.", show_default=False)
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="After a failure, run the steps that do not need it.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a report: .json, .xml (JUnit) or .md (a table).",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Write a recipe to begin with: zoo or compare.", show_default=False
        ),
    ] = None,
) -> dict[str, Any]:
    """Run a recipe: steps that are done stay, the others run once. Paths are relative to the current folder.

    Example: flexswitch run recipes/digits.yaml

    Example: flexswitch run zoo.yaml --jobs 4 --report report.md

    Example: flexswitch run zoo.yaml --check

    Example: flexswitch run --init zoo
    """
    from flexswitch.codecs.errors import UsageError
    from flexswitch.recipes.prepared import prepare, read_graph
    from flexswitch.recipes.report import check_report
    from flexswitch.recipes.run import alone
    from flexswitch.recipes.selection import Choice
    from flexswitch.recipes.shares import read_share

    if schema or init is not None:
        return _written(console, schema, init, recipe)
    if recipe is None:
        raise UsageError("give a recipe; flexswitch run --init zoo writes one to begin with")
    if sum((check, dry_run, force)) > 1:
        raise UsageError("give one of --check, --dry-run and --force")
    choice = Choice(force, only or [], keep_going, frozen, None if shard is None else read_share(shard))
    if address is not None and on != "ray":
        raise UsageError("--address: is of --on ray; give that too")
    graph = read_graph(recipe)
    if report is not None:
        check_report(report)
    if check:
        return _checked(console, graph, report)
    if dry_run:
        return _described(console, prepare(graph), choice)
    with alone(recipe, choice.share):
        return _run(console, graph, choice, (on, jobs, address), report)


def _run(
    console: Console,
    graph: "Graph",
    choice: "Choice",
    place: tuple[str, int, str | None],
    report: Path | None,
) -> dict[str, Any]:
    """Runs what is to run. place: the kind of engine, the number of steps at once, the cluster's address."""
    from flexswitch.cli.run_progress import watch
    from flexswitch.recipes.engines import make_engine, room
    from flexswitch.recipes.prepared import prepare
    from flexswitch.recipes.report import write_report
    from flexswitch.recipes.run import run
    from flexswitch.recipes.selection import select

    prepared = prepare(graph)
    _note_plan(console, prepared)
    tasks = select(prepared, choice)
    engine = make_engine(*place, prepared.digests)
    with watch(console, prepared, tasks) as watcher:
        try:
            outcome = run(prepared, tasks, choice, engine, room(engine), watcher)
        except KeyboardInterrupt:
            console.note(f"{watcher.done} of {len(tasks)} steps are done; the same command does the others")
            raise
    if report is not None:
        write_report(report, prepared, outcome)
    return _finished(console, prepared, outcome)


def _note_plan(console: Console, prepared: "Prepared") -> None:
    for note in prepared.graph.plan.notes:
        console.note(note)


def _finished(console: Console, prepared: "Prepared", outcome: "Outcome") -> dict[str, Any]:
    """Prints what became of the steps, or raises what the first failure is."""
    from flexswitch.cli.eval import score_tables
    from flexswitch.recipes.report import steps_document
    from flexswitch.recipes.run import failure_of

    document = steps_document(prepared, outcome)
    if (failure := failure_of(prepared, outcome)) is not None:
        if console.as_json:
            console.result(document)
        raise failure
    count = Counter(step["status"] for step in document["steps"])
    closing = f"{document['recipe']}: {count['done']} steps done, {count['unchanged']} had been done before"
    results = [(step["name"], step["result"]) for step in document["steps"] if step["result"]]
    parts = [
        part for name, result in results if "methods" in result for part in (name, *score_tables(result))
    ]
    left = f", {count['waiting']} left" if count["waiting"] else ""
    return console.result(document, *parts, closing + left)


def _checked(console: Console, graph: "Graph", report: Path | None) -> dict[str, Any]:
    from flexswitch.codecs.errors import ExpectationError
    from flexswitch.recipes.prepared import check, prepare
    from flexswitch.recipes.report import write_report
    from flexswitch.recipes.schedule import Outcome

    recipe, prepared = graph.plan.source, prepare(graph, from_lock_alone=True)
    wrong = check(prepared)
    if report is not None:
        write_report(report, prepared, Outcome())
    if wrong:
        for line in wrong[1:]:
            console.note(line)
        more = f", and {len(wrong) - 1} other steps" if wrong[1:] else ""
        raise ExpectationError(
            f"{recipe}: not as its lock says: step {wrong[0]}{more}; run it and commit the lock"
        )
    document = {"recipe": str(recipe), "steps": len(prepared.steps), "ok": True}
    return console.result(document, f"{recipe}: all {len(prepared.steps)} steps are as its lock says")


def _described(console: Console, prepared: "Prepared", choice: "Choice") -> dict[str, Any]:
    from flexswitch.recipes.selection import select

    _note_plan(console, prepared)
    tasks = select(prepared, choice)
    steps, lines = [], []
    for number, step in enumerate(prepared.steps):
        reason = prepared.state.reasons.get(number, "--force" if choice.force else "it is done")
        runs = number in tasks
        steps.append({"name": step.name, "command": step.line, "runs": runs, "reason": reason})
        if runs:
            lines += [f"run '{step.name}': {reason}", f"    {step.line}"]
    closing = f"{len(tasks)} of {len(steps)} steps would run"
    return console.result({"recipe": str(prepared.graph.plan.source), "steps": steps}, *lines, closing)


def _written(console: Console, schema: bool, name: str | None, target: Path | None) -> dict[str, Any]:
    """Prints the schema, or writes a recipe to begin with."""
    from flexswitch.recipes.starting import recipe_schema, write_recipe

    if schema or name is None:
        return Console(console.quiet, as_json=True).result(recipe_schema())
    path = write_recipe(name, target or Path(f"{name}.yaml"))
    return console.result({"recipe": str(path)}, f"{path}: edit it, then run: flexswitch run {path}")
