"""Writes golden files, once: cd tests && python -m golden.write NAME ..., see `write_all`.

`NAME.bin` holds the payloads of all cases of a codec, one after the other; `NAME.json` says what they decode
to. Released bytes never change: another layout gets another name.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from support.artifact_files import EXTRAS, HEADER, ROWS, Tensors, by_rows
from support.sparse_tensors import BITS, SETTINGS, sparse_tensor, write_artifact

from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor, packed_sum, packed_tensor
from flexswitch.codecs.format.quality_records import QualityRecord, TrainingRecord
from flexswitch.codecs.format.records import SharedRecord
from flexswitch.codecs.format.zoo import file_sha256
from flexswitch.codecs.registry import get_codec, stored_codec
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.codecs.storage import store

SHAPE = (5, 59)
KEPT = [2, 3, 64, 65, 66, 67, 68, 69, 70, 71, 100, 131, 255, 256, 290, 294]
LARGER = (48, 59)

_LONG = sparse_tensor((2, 600_000), [0, (1 << 20) - 1, 1 << 20, 1_199_999], [1, 0, 1, 1], 1)
_STEPS = sparse_tensor((3, 7), [1, 4, 5, 14, 20], [3, 0, 2, 1, 3], 3)
_STEPS_BY_ROWS = sparse_tensor((90, 2), [3, 10, 11], [0, 3, 1], 2)
GOLDEN_TENSORS: Tensors = ROWS | {
    "long": (_LONG, 0.25, stored_codec("grouped-coo", {"group": 256})),
    "zero": (_STEPS, 0.5, stored_codec("rice", {"remainder": 2})),
    "zero by rows": (_STEPS_BY_ROWS, 0.25, by_rows(_STEPS_BY_ROWS, [1, 5], stored_codec("bitmask", {}))),
}
_ZEROS = {"zero": 5, "zero by rows": 2}
_RECORD = TrainingRecord(
    exemplars=12,
    exemplars_sha256="ef" * 32,
    held_out=8,
    before=QualityRecord(divergence=0.25, agreement=0.5),
    after=QualityRecord(divergence=0.125, agreement=0.75, held_out_divergence=0.5, held_out_agreement=0.625),
    curve=[(3, 0.5, 0.25), (6, 0.25, 0.125)],
)


_NUMBERS = np.arange(1, 13, dtype=np.float32).view(np.uint32).tolist()
_FACTORS = np.array([1, 2, -1, 0.5, -2], np.float32).view(np.uint32).tolist()  # (1 2 0 −1) above (0.5 0 −2)
SHARED_TENSORS: Tensors = {
    "weight": (sparse_tensor((4, 3), list(range(12)), _NUMBERS, 32), 1.0, stored_codec("raw", {})),
    "bias": (sparse_tensor((2,), [0, 1], [1, 0], 1), 0.5, stored_codec("bitmask", {})),
}
Shape = tuple[int, ...] | None
PRODUCT_TENSORS: dict[str, tuple[SparseTensor, float, Shape]] = {
    "weight": (sparse_tensor((4, 3), [0, 3, 4, 11], [0] * 4, 0), 1.5, None),
}
SUM_TENSORS: dict[str, tuple[SparseTensor, float, Shape]] = {
    "weight": (sparse_tensor((7, 1), [0, 1, 3, 4, 6], _FACTORS, 32), 1.0, (4, 3)),
    "own": (sparse_tensor((3,), [1], [3], 2), 0.75, None),
}


def write_golden(path: Path) -> Path:
    """Writes an artifact with every field of its two documents; returns its path."""
    header = HEADER.model_copy(update={"training": _RECORD})
    return write_artifact(path, GOLDEN_TENSORS, EXTRAS, header, _ZEROS)


def write_shared(folder: Path) -> None:
    """Writes a shared vector, and a task of each rule."""
    vector = write_artifact(folder / "vector.fsw", SHARED_TENSORS, {}, HEADER)
    for rule, tensors in (("product", PRODUCT_TENSORS), ("sum", SUM_TENSORS)):
        shared = SharedRecord.model_validate({"sha256": file_sha256(vector), "rule": rule})
        header = HEADER.model_copy(update={"shared": shared})
        with ArtifactWriter(folder / f"{rule}.fsw") as writer:
            for name, (sparse, scale, shape) in tensors.items():
                writer.add_tensor(name, packed_tensor(sparse, store(sparse), scale, "F32", shape=shape))
            writer.finish(header)


class Part(NamedTuple):
    """One part of a tensor; shape and weights are those of a product."""

    sparse: SparseTensor
    scale: float
    zero: int | None = None
    shape: Shape = None
    weights: tuple[float, ...] | None = None


PARTS = [
    Part(
        sparse_tensor((7, 2), [0, 1, 2, 3, 4, 5, 8, 9, 11, 12, 13], [3, 0, 2, 1, 3, 3, 0, 1, 2, 3, 0], 2),
        1.0, None, (4, 3), (0.5, -2.0),
    ),
    Part(sparse_tensor((7, 1), [0, 2, 4, 6], [130, 121, 0, 255], 8), 0.5, 128, (4, 3)),
    Part(sparse_tensor((4, 3), [0, 5], [1, 0], 1), 0.25),
]  # fmt: skip


def packed_parts(parts: Sequence[Part]) -> PackedTensor:
    """Returns the tensor that is the sum of parts, as it is stored."""
    return packed_sum(
        [packed_tensor(part.sparse, store(part.sparse), part.scale, "F32", *part[2:]) for part in parts]
    )


def write_parts(path: Path) -> Path:
    """Writes an artifact of a tensor in three parts, and one that is a product; returns its path."""
    with ArtifactWriter(path) as writer:
        writer.add_tensor("weight", packed_parts(PARTS))
        writer.add_tensor("product", packed_parts(PARTS[1:2]))
        writer.finish(HEADER)
    return path


def cases(name: str) -> Iterator[dict[str, Any]]:
    """Yields the cases of a codec: each of the tests' settings with all bit widths, and a larger one."""
    chosen = SETTINGS.get(name, [{}])
    for settings in chosen:
        for bits in BITS:
            levels = [(0x9E3779B1 * (index + 1) >> 7) % (1 << bits) for index in range(len(KEPT))]
            yield {"settings": settings, "bits": bits, "shape": SHAPE, "kept": KEPT, "levels": levels}
    kept, levels = patterned()
    more = {"bits": 4, "shape": LARGER, "kept": kept, "levels": levels}
    yield {"settings": chosen[len(chosen) // 2], **more}


def patterned() -> tuple[list[int], list[int]]:
    """Returns kept positions, none of them in ten rows, and levels whose signs follow one of three patterns."""
    draw = random.Random(0)
    rows, columns = LARGER
    patterns = [[draw.random() < 0.5 for _ in range(columns)] for _ in range(3)]
    kept = [place for place in range(rows * columns) if draw.random() < 0.12]
    kept = [place for place in kept if not 20 <= place // columns < 30]
    levels = []
    for place in kept:
        positive = patterns[place // columns % 3][place % columns] ^ (draw.random() < 0.15)
        magnitude = min(7, int(draw.expovariate(0.5)))
        levels.append(8 + magnitude if positive else 7 - magnitude)
    return kept, levels


def write(name: str) -> None:
    """Writes one codec's two files; fails if they exist."""
    data, written = b"", []
    for case in cases(name):
        sparse = sparse_tensor(case["shape"], case["kept"], case["levels"], case["bits"])
        payload = get_codec(name)(**case["settings"]).encode(sparse)
        written.append({"size": len(payload)} | case)
        data += payload
    folder = Path(__file__).parent
    with (folder / f"{name}.bin").open("xb") as file:
        file.write(data)
    with (folder / f"{name}.json").open("x", encoding="utf-8") as document:
        document.write("[\n" + ",\n".join(map(json.dumps, written)) + "\n]\n")


def write_all(names: Sequence[str]) -> None:
    """Writes the files of each name, which is that of a codec, "artifact", "shared" or "parts"."""
    folder = Path(__file__).parent
    for name in names:
        if name == "shared":
            write_shared(folder)
        elif name == "artifact":
            write_golden(folder / "artifact.fsw")
        elif name == "parts":
            write_parts(folder / "parts.fsw")
        else:
            write(name)


if __name__ == "__main__":
    write_all(sys.argv[1:])
