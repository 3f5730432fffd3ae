"""`flexswitch inspect`: what a path holds, tensor by tensor, and its sizes."""

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, percent, size, table
from flexswitch.cli.options import Jobs, Overwrite
from flexswitch.cli.table import Table

_RULES = {"sum": "added to", "product": "times"}

if TYPE_CHECKING:
    from flexswitch.codecs.format.records import PartRecord
    from flexswitch.codecs.format.zoo import TaskRecord


@command
def inspect(
    console: Console,
    path: Annotated[str, typer.Argument(help="An artifact, a zoo, a task vector or a checkpoint.")],
    storage: Annotated[
        bool,
        typer.Option(
            "--storage",
            help="Compare an artifact's or zoo's bytes with Shannon's bound and with each codec.",
        ),
    ] = False,
    jobs: Jobs = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the loss and size of a trained artifact against the steps, as a PNG.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Show what a file or folder is: its base, method, tensors and sizes.

    Example: flexswitch inspect sst2.fsw

    Example: flexswitch inspect zoo --storage

    Example: flexswitch inspect sst2.fsw --plot training.png
    """
    from flexswitch.codecs.errors import UsageError
    from flexswitch.codecs.format.hub_id import is_hub_id
    from flexswitch.codecs.format.zoo import ZOO_FILE
    from flexswitch.merging.checkpoints.hub_zoo import hub_zoo
    from flexswitch.merging.task_vectors.task_name import SUFFIX

    if overwrite and plot is None:
        raise UsageError("--overwrite replaces the PNG of --plot; give that too")
    if plot is not None:
        if storage:
            raise UsageError("give one of --storage and --plot")
        _draw(path, plot, overwrite)
    if storage:
        from flexswitch.cli.storage_table import storage_report

        return console.result(*storage_report(path, console, jobs))
    if path.endswith(".fsw"):
        return console.result(*_artifact(Path(path)))
    if not Path(path).exists() and is_hub_id(path):
        path = str(hub_zoo(path) or path)
    if (Path(path) / ZOO_FILE).is_file():
        return console.result(*_zoo(Path(path)))
    if path.endswith(SUFFIX):
        return console.result(*_task_vector(Path(path)))
    return console.result(*_checkpoint(path))


def _draw(path: str, plot: Path, overwrite: bool) -> None:
    """Draws the training of an artifact. Raises: UsageError where it has no record of one; InputError."""
    from flexswitch.codecs.errors import UsageError
    from flexswitch.codecs.format.container import open_artifact
    from flexswitch.merging.commands.arguments import check_picture
    from flexswitch.merging.flex_switch.training_chart import draw_training

    check_picture("--plot", plot, overwrite)
    header = open_artifact(Path(path)).header if path.endswith(".fsw") else None
    if header is None or header.training is None or not header.training.curve:
        raise UsageError(f"--plot: {path} has no training record; artifacts of methods that learn have one")
    draw_training(header, header.training, plot, overwrite)


def _artifact(path: Path) -> tuple[dict[str, Any], str, Table, *tuple[Table | str, ...]]:
    from flexswitch.cli.experts import changed_experts
    from flexswitch.cli.quality_report import budget_line, budget_table, error_line, training_table
    from flexswitch.codecs.format.container import open_artifact
    from flexswitch.codecs.format.tensor_names import is_side_file
    from flexswitch.merging.compression.quality_warning import quality_warning

    artifact = open_artifact(path)
    header, stored = artifact.header, path.stat().st_size
    rows = table(
        "", "tensor", "shape", "codec", "bits", "kept", "density", "bytes", "bits per parameter", left=3
    )
    tensors = {}
    for name, record in sorted(header.tensors.items()):
        for number, part in enumerate(record.parts):
            shape = "×".join(map(str, part.shape)) + (f" of rank {part.rank}" if part.rank else "")
            rows.add_row("  + " if number else name, shape, _codecs(part), str(part.bits), f"{part.kept:,}",
                         percent(part.kept / max(1, part.layout.entries), 2), f"{part.size:,}",
                         f"{8 * part.size / max(1, prod(part.shape)):.3f}")  # fmt: skip
        if record.base_factor:
            rows.add_row(f"  {record.base_factor:+.4g} × the base's", "", "", "", "", "", "", "")
        kept, entries = (
            sum(part.kept for part in record.parts),
            sum(part.layout.entries for part in record.parts),
        )
        counts = {"kept": kept, "density": kept / max(1, entries), "bytes": record.whole_size}
        experts = changed_experts(artifact, name)
        for expert, own in experts.items():
            share = own * record.shape[0] / max(1, prod(record.shape))
            rows.add_row(f"  expert {expert}", "", "", "", f"{own:,}", percent(share, 2), "", "")
        tensors[name] = record.model_dump() | counts | ({"experts": experts} if experts else {})
    for name, exact in sorted(header.exact.items()):
        shape, forms = (
            "×".join(map(str, exact.shape)),
            dict.fromkeys(block.form.name for block in exact.blocks),
        )
        rows.add_row(name, shape, " ".join(forms), exact.dtype, "exact", "", f"{exact.size:,}",
                     f"{8 * exact.size / max(1, exact.entries):.3f}")  # fmt: skip
        tensors[name] = exact.model_dump() | {"bytes": exact.size}
    kept = header.kept
    payloads = sum(tensor["bytes"] for tensor in tensors.values())
    extras = artifact.extra_bytes()
    rows.add_section()
    rows.add_row("total", "", "", "", f"{kept:,}", percent(kept / max(1, header.parameters), 2),
                 f"{payloads:,}", f"{8 * payloads / max(1, header.parameters):.3f}")  # fmt: skip
    document = header.model_dump() | {
        "tensors": tensors, "kept": kept, "bytes": stored, "payload_bytes": payloads, "extra_bytes": extras,
        "header_bytes": stored - payloads - extras,
    }  # fmt: skip
    settings = ", ".join(f"{key}={value}" for key, value in header.method.settings.items())
    head = (
        f"{path}: task '{header.name}' by {header.method.name} ({settings}), base {_base(header.base)}, "
        f"adapter {header.model.adapter or 'unknown'}"
    )
    if header.shared is not None:
        head += f"; {_RULES[header.shared.rule]} the shared vector {header.shared.sha256[:16]} of its zoo"
    totals = _totals(stored, payloads, extras, header.parameters)
    if files := [name.partition("/")[2] for name in header.extras if is_side_file(name)]:
        totals += f"; files beside the weights: {', '.join(files)}"
    closing: list[Table | str] = [totals]
    if header.error is not None:
        closing.append(error_line(header.error))
    if warning := quality_warning(header):
        closing.append(warning)
    if header.training is not None:
        closing.append(training_table(header, header.training))
    if header.budget is not None:
        closing += [budget_line(header, header.budget), budget_table(header, header.budget)]
    return document, head, rows, *closing


def _codecs(record: "PartRecord") -> str:
    """Returns a tensor's codecs, each once, and whether empty rows are left out."""
    named = []
    for block in record.blocks:
        settings = ",".join(f"{key}={value}" for key, value in block.settings.items())
        named.append(f"{block.codec}({settings})" if settings else block.codec)
    return " ".join(dict.fromkeys(named)) + (" by rows" if record.rows else "")


def _totals(stored: int, payloads: int, extras: int, parameters: int) -> str:
    return (
        f"file {size(stored)}: tensors {size(payloads)}, extras {size(extras)}, header "
        f"{size(stored - payloads - extras)}; {8 * stored / max(1, parameters):.3f} bits per parameter, "
        f"1/{4 * parameters / stored:.1f} of float32, 1/{2 * parameters / stored:.1f} of bfloat16"
    )


def _zoo(path: Path) -> tuple[dict[str, Any], str, Table, str]:
    from flexswitch.codecs.format.zoo import open_zoo
    from flexswitch.merging.commands.reporter import counted

    zoo = open_zoo(path)
    rows = table(
        "", "task", "method", "parameters", "bytes", "bits per parameter", "of float32", "relative error",
        left=2,
    )  # fmt: skip
    for task in zoo:
        rows.add_row(task, *_stored(zoo.record.tasks[task]))
    if zoo.record.shared is not None:
        rows.add_row("shared by all", *_stored(zoo.record.shared))
    index = zoo.record.index
    described = (
        f"{index.features}, {index.metric}, {index.per_task} a task, {size(index.size)}" if index else "none"
    )
    adapter = zoo.record.adapter or "unknown"
    head = f"{path}: zoo of {counted(len(zoo), 'task')}, base {_base(zoo.record.base)}, adapter {adapter}"
    total = zoo.stored_bytes()
    return (
        zoo.record.model_dump() | {"bytes": total},
        head,
        rows,
        f"total {size(total)}; query index: {described}",
    )


def _stored(record: "TaskRecord") -> list[str]:
    """Returns the cells of a stored file from its method on."""
    bits = 8 * record.size / max(1, record.parameters)
    share = 4 * record.parameters / max(1, record.size)
    error = "–" if record.relative_error is None else f"{record.relative_error:.4f}"
    return [
        record.method, f"{record.parameters:,}", f"{record.size:,}", f"{bits:.3f}", f"1/{share:.1f}", error,
    ]  # fmt: skip


def _task_vector(path: Path) -> tuple[dict[str, Any], str, Table, str]:
    from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile

    vector = TaskVectorFile(path)
    rows = table("", "tensor", "shape", "fine-tuned dtype", "parameters", left=3)
    for name, info in vector.tensors.items():
        rows.add_row(name, "×".join(map(str, info.shape)), info.dtype, f"{info.entries:,}")
    document = vector.header.model_dump() | {
        "bytes": path.stat().st_size,
        "extras": {name: list(info.shape) for name, info in vector.extras.items()},
    }
    head = f"{path}: task vector '{vector.header.name}', base {_base(vector.header.base)}"
    return (
        document,
        head,
        rows,
        f"{vector.parameters:,} parameters, {len(vector.extras)} extras, {size(document['bytes'])}",
    )


def _checkpoint(path: str) -> tuple[dict[str, Any], str, Table, str]:
    from flexswitch.codecs.format.safetensors_file import DTYPE_BYTES
    from flexswitch.merging.checkpoints.opening import open_stored

    checkpoint = open_stored(path)
    rows = table("", "tensor", "shape", "dtype", "parameters", left=3)
    for name, info in checkpoint.tensors.items():
        rows.add_row(name, "×".join(map(str, info.shape)), info.dtype, f"{info.entries:,}")
    parameters = sum(info.entries for info in checkpoint.tensors.values())
    stored = sum(info.entries * DTYPE_BYTES[info.dtype] for info in checkpoint.tensors.values())
    tensors = {
        name: {"shape": list(info.shape), "dtype": info.dtype} for name, info in checkpoint.tensors.items()
    }
    document = {"path": path, "parameters": parameters, "bytes": stored, "tensors": tensors,
                "aliases": dict(checkpoint.aliases)}  # fmt: skip
    return (
        document,
        f"{path}: checkpoint of {len(tensors)} tensors",
        rows,
        f"{parameters:,} parameters, {size(stored)}",
    )


def _base(identity: Any) -> str:
    return f"{identity.id or 'local'} ({identity.fingerprint[:12]})"
