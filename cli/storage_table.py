"""The table of `flexswitch inspect --storage`: each tensor's bytes beside those of other codecs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexswitch.cli.console import Console, percent, size, table
from flexswitch.cli.table import Table

if TYPE_CHECKING:
    from flexswitch.codecs.format.container import Artifact
    from flexswitch.codecs.format.tensor_sizes import TensorSizes
    from flexswitch.codecs.format.zoo import Zoo


def storage_report(path: str, console: Console, jobs: int | None) -> tuple[dict[str, Any], Table, str]:
    """Returns the JSON document, the table and the closing line. Raises: InputError, ArtifactError."""
    from flexswitch.codecs.format.tensor_sizes import NOTHING, tensor_sizes
    from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY, WORKING_BYTES, map_in_order

    artifacts = _artifacts(path)
    tensors = [(task, name) for task, artifact in artifacts.items() for name in artifact.header.tensors]

    def work(tensor: tuple[str, str]) -> "TensorSizes":
        return tensor_sizes(artifacts[tensor[0]], tensor[1])

    def cost(tensor: tuple[str, str]) -> int:
        parts = artifacts[tensor[0]].header.tensors[tensor[1]].parts
        return sum(part.layout.entries for part in parts) * WORKING_BYTES

    document: dict[str, Any] = {"path": path, "tasks": {task: {} for task in artifacts}}
    rows: dict[str, TensorSizes] = {}
    total = NOTHING
    with console.progress(f"encoding {len(tensors)} tensors by every codec", len(tensors)) as step:
        found = map_in_order(work, tensors, jobs or DEFAULT_JOBS, cost, DEFAULT_MEMORY)
        for (task, name), sizes in zip(tensors, found, strict=True):
            step(name)
            document["tasks"][task][name] = asdict(sizes)
            rows[name] = rows.get(name, NOTHING) + sizes
            total += sizes
    files = sum(artifact.file_bytes() for artifact in artifacts.values())
    extras = sum(artifact.extra_bytes() for artifact in artifacts.values())
    document |= {"total": asdict(total), "file_bytes": files, "extra_bytes": extras}
    drawn = table("", "tensor", "density", "bytes", "Shannon", "of it", "2025 form", *total.codecs)
    for name, sizes in sorted(rows.items()):
        drawn.add_row(name, *_cells(sizes))
    drawn.add_section()
    drawn.add_row(f"total of {len(artifacts)} file{'s' * (len(artifacts) > 1)}", *_cells(total))
    header = files - total.stored - extras
    closing = (
        f"{path}: tensors {size(total.stored)}, {percent(total.stored / max(1.0, total.shannon))} of "
        f"Shannon's bound and 1/{total.published / max(1, total.stored):.2f} of the 2025 form; headers "
        f"{size(header)}, {header / max(1, len(tensors)):.0f} bytes a tensor; extras {size(extras)}"
    )
    return document, drawn, closing


def _artifacts(path: str) -> "dict[str, Artifact]":
    """Returns the artifact, or those of a zoo, by task. Raises: InputError where it is neither."""
    from flexswitch.codecs.errors import InputError
    from flexswitch.codecs.format.container import open_artifact
    from flexswitch.codecs.format.zoo import ZOO_FILE, read_zoo

    if (Path(path) / ZOO_FILE).is_file():
        return read_zoo(path, _stored_in)
    if not path.endswith(".fsw"):
        raise InputError(f"{path}: --storage needs an artifact (.fsw) or a zoo")
    artifact = open_artifact(Path(path))
    return {artifact.header.name: artifact}


def _stored_in(zoo: "Zoo") -> "dict[str, Artifact]":
    """Returns a zoo's tasks, and the vector that they share, if there is one."""
    shared = zoo.shared()
    return {**zoo, **({} if shared is None else {"shared by all": shared})}


def _cells(sizes: "TensorSizes") -> list[str]:
    return [
        percent(sizes.kept / max(1, sizes.entries), 2),
        f"{sizes.stored:,}",
        f"{sizes.shannon:,.0f}",
        percent(sizes.stored / max(1.0, sizes.shannon)),
        f"{sizes.published:,}",
        *(f"{size:,}" for size in sizes.codecs.values()),
    ]
