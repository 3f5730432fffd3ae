"""Checks an artifact's records against each other: dtypes, counts, and the blocks that a shape implies."""

import math
from pathlib import Path

from flexswitch.codecs.blocks import Grid, as_matrix
from flexswitch.codecs.errors import ArtifactError
from flexswitch.codecs.format.extra_forms import most_extra_bytes
from flexswitch.codecs.format.records import ExactRecord, ExtraRecord, PartRecord, SharedRecord, TensorRecord
from flexswitch.codecs.format.safetensors_file import DTYPE_BYTES
from flexswitch.codecs.residual import NUMBER_KINDS
from flexswitch.codecs.sparse import MAX_BLOCK_ENTRIES, SparseLayout

_MOST_ENTRIES = 1 << 34  # of a tensor; its mask then takes 2 GiB
_RULES = {
    None: "its own alone", "sum": "added to shared ones", "product": "factors of shared ones",
}  # fmt: skip


def check_extra(path: Path, name: str, record: ExtraRecord) -> None:
    if record.dtype not in DTYPE_BYTES:
        raise ArtifactError(f"{path}: extra '{name}' has the dtype {record.dtype}; its header is damaged")
    needed, most = math.prod(record.shape) * DTYPE_BYTES[record.dtype], most_extra_bytes(record.size)
    if needed > most:
        raise ArtifactError(
            f"{path}: extra '{name}' of shape {record.shape} takes {needed:,} bytes, expected {most:,} at "
            f"most of {record.size:,} stored ones; its header is damaged"
        )


def check_exact(path: Path, name: str, record: ExactRecord) -> None:
    if record.dtype not in NUMBER_KINDS:
        raise ArtifactError(f"{path}: tensor '{name}' has the dtype {record.dtype}; its header is damaged")
    _check_entries(path, name, record.shape)
    expected = as_matrix(tuple(record.shape)).count()
    if len(record.blocks) != expected:
        raise ArtifactError(
            f"{path}: tensor '{name}' of shape {record.shape} has {len(record.blocks)} blocks, expected "
            f"{expected}; its header is damaged"
        )


def check_record(path: Path, name: str, record: TensorRecord, shared: SharedRecord | None) -> None:
    """Raises: ArtifactError where a tensor's record, or one of its parts, contradicts itself."""
    rule = None if shared is None else shared.rule
    for part in record.parts:
        _check_part(path, name, part, rule)
    differ = any((part.shape, part.dtype) != (record.shape, record.dtype) for part in record.more)
    if differ or (record.more and rule == "product"):
        raise ArtifactError(
            f"{path}: tensor '{name}' has {len(record.parts)} parts that cannot be added; its header is "
            "damaged"
        )
    if record.base_factor and (rule is not None or len(record.shape) < 2):
        raise ArtifactError(
            f"{path}: tensor '{name}' of shape {record.shape} has a multiple of the base's, which matrices "
            "alone have, and without a shared vector; its header is damaged"
        )


def _check_part(path: Path, name: str, record: PartRecord, rule: str | None) -> None:
    if record.kept > record.layout.entries or record.dtype not in DTYPE_BYTES:
        raise ArtifactError(
            f"{path}: tensor '{name}' of shape {record.shape} and dtype {record.dtype} "
            f"keeps {record.kept} entries; its header is damaged"
        )
    _check_entries(path, name, record.shape)
    _check_entries(path, name, list(record.stored_shape))
    if record.zero is not None and not 1 <= record.bits <= 8:
        raise ArtifactError(
            f"{path}: tensor '{name}' has a zero point and levels of {record.bits} bits; its header is "
            "damaged"
        )
    if record.bits == 0 and rule != "product":
        raise ArtifactError(
            f"{path}: tensor '{name}' is a mask, and its values are {_RULES[rule]}; its header is damaged"
        )
    if record.rank is not None and (
        rule == "product" or len(record.shape) != 2 or record.rank > min(record.shape)
    ):
        raise ArtifactError(
            f"{path}: tensor '{name}' of shape {record.shape} has the rank {record.rank}, and its values are "
            f"{_RULES[rule]}; its header is damaged"
        )
    if record.weights is not None and len(record.weights) != record.rank:
        raise ArtifactError(
            f"{path}: tensor '{name}' of rank {record.rank} has {len(record.weights)} weights; its header is "
            "damaged"
        )


def _check_entries(path: Path, name: str, shape: list[int]) -> None:
    """Raises: ArtifactError where a shape has more entries than a tensor of any model."""
    if (entries := math.prod(shape)) > _MOST_ENTRIES:
        raise ArtifactError(
            f"{path}: tensor '{name}' of shape {shape} has {entries:,} entries, expected "
            f"{_MOST_ENTRIES:,} at most"
        )


def block_layouts(path: Path, name: str, record: PartRecord) -> list[SparseLayout]:
    """Returns the layouts of a tensor's stored blocks. Raises: ArtifactError if they don't fit its shape."""
    grid = as_matrix(record.stored_shape)
    layouts = []
    if record.rows is not None:
        layouts.append(SparseLayout((grid.rows,), record.rows.kept, 0))
        grid = Grid(min(grid.rows, record.rows.kept), grid.columns)
        if not record.rows.kept or layouts[0].entries > MAX_BLOCK_ENTRIES:
            raise ArtifactError(
                f"{path}: tensor '{name}' has row flags for {record.rows.kept} of {layouts[0].entries} rows; "
                "its header is damaged"
            )
    if grid.count() != len(record.blocks):
        raise ArtifactError(
            f"{path}: tensor '{name}' of shape {record.shape} has {len(record.blocks)} blocks, expected "
            f"{grid.count()}; its header is damaged"
        )
    blocks = zip(grid.shapes(), record.blocks, strict=True)
    layouts += [SparseLayout(shape, block.kept, record.bits) for shape, block in blocks]
    for layout in layouts:
        if layout.kept > layout.entries:
            raise ArtifactError(
                f"{path}: tensor '{name}' has a block that keeps {layout.kept} of {layout.entries} entries; "
                "its header is damaged"
            )
    return layouts
