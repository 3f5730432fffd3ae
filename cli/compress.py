"""`flexswitch compress`: a task vector, or two checkpoints, into a tiny artifact."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, percent, size
from flexswitch.cli.options import (
    Adapter,
    Device,
    Exclude,
    Include,
    Jobs,
    Key,
    MaxLength,
    Memory,
    Name,
    OnResize,
    Output,
    Overwrite,
    Set,
    completing,
)
from flexswitch.merging.methods.registry import method_names

if TYPE_CHECKING:
    from flexswitch.codecs.format.container import Artifact


@command
def compress(
    console: Console,
    task_vector: Annotated[
        str, typer.Argument(help="A TASK.tv.safetensors; or with --base a fine-tuned checkpoint or LoRA.")
    ],
    output: Output,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"How to compress: {', '.join(method_names('compression'))}.",
            show_default="t-switch; flexswitch with --exemplars, --target-size or --budget",
            autocompletion=completing(method_names("compression")),
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base of a fine-tuned checkpoint; a method that learns runs it.", show_default=False
        ),
    ] = None,
    set_: Set = None,
    target_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Size of the whole artifact, for methods that compress to a size: bytes (400KB), a share of "
            "float32 (0.5%) or bits per parameter (0.16bpp).",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="agreement=SHARE",
            help="Instead of a size, the share of the fine-tuned model's answers to keep on held-out "
            "exemplars (agreement=99%): the smallest file that does is searched in up to 8 compressions.",
            show_default=False,
        ),
    ] = None,
    extras: Annotated[
        Literal["exact", "float16", "int8", "auto"] | None,
        typer.Option(
            help="How the task's own matrices, such as a head, are stored: exact, float16, int8 (levels, and "
            "a scale for each row) or auto, the widest of 8, 6 and 4 bits that suits the target size.",
            show_default="auto for methods that meet a size, else exact",
        ),
    ] = None,
    exemplars: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of <task>.train.* files, for methods that learn and for --budget; labels are read "
            "for objective=task only. Of chats (messages) and prompts with completions the answers alone "
            "count.",
            show_default=False,
        ),
    ] = None,
    per_task: Annotated[int, typer.Option(min=1, help="Number of exemplars to learn from.")] = 100,
    adapter: Adapter = None,
    device: Device = "cpu",
    max_length: MaxLength = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep the training's state in OUTPUT.training every N steps, and continue from it; with "
            "--budget finished tries in OUTPUT.tries, too.",
            show_default=False,
        ),
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    on_resize: OnResize = "refuse",
    key: Key = None,
    name: Name = None,
    jobs: Jobs = None,
    memory: Memory = "1GB",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep finished tensors in OUTPUT.resume, with --budget finished tries in OUTPUT.tries, and "
            "continue from them.",
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Compress a task vector, or a fine-tuned checkpoint against its base, into an artifact.

    Methods that learn what to keep take --base and --exemplars, and meet a --target-size; with --budget the
    size is found.

    Example: flexswitch compress sst2 --base base -o sst2.fsw
    """
    from flexswitch.codecs.byte_size import parse_size
    from flexswitch.merging.commands.compress import compress
    from flexswitch.merging.methods.settings import parse_settings

    artifact = compress(
        task_vector, output, base=base, method=method, settings=parse_settings(set_ or []),
        target_size=target_size, budget=budget, extras=extras, exemplars=exemplars, per_task=per_task,
        adapter=adapter, device=device, max_length=max_length, checkpoint_every=checkpoint_every,
        include=include or (), exclude=exclude or (), on_resize=on_resize, key=key, name=name, jobs=jobs,
        memory=parse_size(memory), resume=resume, overwrite=overwrite, reporter=console,
    )  # fmt: skip
    return _print(console, artifact)


def _print(console: Console, artifact: "Artifact") -> dict[str, Any]:
    """Prints what the artifact is and how small it is; returns the JSON document."""
    from flexswitch.cli.quality_report import budget_line, error_line, training_line
    from flexswitch.merging.commands.results import compressed

    header, document = artifact.header, compressed(artifact)
    kept, stored = document["kept"], document["bytes"]
    parameters = max(1, header.parameters)
    share = "all" if header.exact else percent(kept / parameters)
    lines = [
        f"{artifact.path}: task '{header.name}' by {header.method.name}, kept {share} of "
        f"{header.parameters:,} parameters, {size(stored)}, {document['bits_per_parameter']:.3f} bits a "
        f"parameter (1/{4 * header.parameters / stored:.0f} of float32)"
    ]
    if header.training is not None:
        lines.append(training_line(header, header.training))
    if header.error is not None:
        lines.append(error_line(header.error))
    if header.budget is not None:
        lines.append(budget_line(header, header.budget))
    return console.result(document, *lines)
