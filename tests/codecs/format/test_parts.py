"""Tensors that are stored in parts, and as products of factors: what is read, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.write import PARTS, Part, packed_parts, write_parts
from numpy.typing import NDArray
from support.artifact_files import GOLDEN, damage_table, flip_block_bit, message
from support.checkpoints import message as refusal
from support.commands import Runner
from support.sparse_tensors import assert_same

from flexswitch.codecs.errors import ArtifactError, DecodeError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.commands.verify import verify
from flexswitch.merging.task_vectors.add_task import add_task
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector

Doubles = NDArray[np.float64]


def values_of(part: Part) -> Doubles:
    """Returns a part's values by FORMAT.md, in float64, (4, 3)."""
    sparse = part.sparse
    steps = 2**sparse.bits - 1
    levels = sparse.levels.astype(np.float64)
    values = part.scale * (levels - part.zero if part.zero is not None else (2 * levels - steps) / steps)
    stored = np.zeros(sparse.layout.entries)
    stored[np.unpackbits(sparse.mask, count=len(stored), bitorder="little").astype(bool)] = values
    stored = stored.reshape(sparse.shape)
    if part.shape is None:
        return stored
    rows = part.shape[0]
    return np.asarray(stored[:rows] @ np.diag(part.weights or np.ones(stored.shape[1])) @ stored[rows:].T)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of the golden file, which a test may change."""
    return Path(shutil.copy(GOLDEN / "parts.fsw", tmp_path))


@pytest.mark.parametrize("size", [None, 1, 5])
def test_the_golden_file_holds_the_sum_of_its_parts(tmp_path: Path, size: int | None) -> None:
    for file in (GOLDEN / "parts.fsw", write_parts(tmp_path / "parts.fsw")):
        artifact = open_artifact(file)
        vector = ArtifactVector(artifact)
        for number, part in enumerate(PARTS):
            assert_same(artifact.sparse("weight", number), part.sparse)
        for name, parts in (("weight", PARTS), ("product", PARTS[1:2])):
            found = np.concatenate(list(vector.blocks(name, size)))
            np.testing.assert_allclose(found, sum(map(values_of, parts)).reshape(-1), rtol=1e-6)  # type: ignore[union-attr]
            assert not vector.is_sparse(name)
    assert verify(tmp_path / "parts.fsw").lines[0].endswith("2 tensors, all checksums and counts match")


def test_a_live_model_gets_all_parts() -> None:
    artifact = open_artifact(GOLDEN / "parts.fsw")
    weights = {name: torch.ones(4, 3) for name in ("weight", "product")}
    add_task(weights, artifact, 2.0, check_base=False)
    expected = 1 + 2 * torch.from_numpy(np.asarray(sum(map(values_of, PARTS))))
    torch.testing.assert_close(weights["weight"], expected.float())


@pytest.mark.parametrize("form", ["raw", "auto"])
def test_a_zoo_keeps_the_parts(tmp_path: Path, form: str) -> None:
    zoo = pack([GOLDEN / "parts.fsw"], tmp_path / "zoo", codec=form)
    (artifact,) = zoo.values()
    before, after = (ArtifactVector(each) for each in (open_artifact(GOLDEN / "parts.fsw"), artifact))
    for name in before.tensors:
        assert [list(block) for block in after.blocks(name)] == [list(block) for block in before.blocks(name)]
    record = artifact.header.tensors["weight"]
    assert [(part.rank, part.bits, part.zero) for part in record.parts] == [
        (2, 2, None),
        (1, 8, 128),
        (None, 1, None),
    ]
    assert record.weights == [0.5, -2.0]


def test_inspect_shows_each_part(flexswitch: Runner) -> None:
    shown = flexswitch("inspect", GOLDEN / "parts.fsw").out.splitlines()
    (first,) = [number for number, line in enumerate(shown) if line.startswith("weight")]
    assert "4×3 of rank 2" in shown[first]
    assert "4×3 of rank 1" in shown[first + 1]
    assert shown[first + 2].split()[:2] == ["+", "4×3"]
    document = json.loads(flexswitch("inspect", GOLDEN / "parts.fsw", "--json").out)
    sizes = [
        sum(block["size"] for block in part["blocks"])
        for part in (document["tensors"]["weight"], *document["tensors"]["weight"]["more"])
    ]
    assert document["tensors"]["weight"]["bytes"] == sum(sizes)
    assert document["kept"] == sum(len(part.sparse.levels) for part in (*PARTS, PARTS[1]))
    assert flexswitch("inspect", GOLDEN / "parts.fsw", "--storage").status == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weight: weight.update(weights=[1.0]), "of rank 2 has 1 weights"),
        (lambda weight: weight["more"][1].update(weights=[]), "of rank None has 0 weights"),
        (lambda weight: weight.update(weights=[1.0, 1e39]), "weights"),
        (lambda weight: weight["more"][0].update(rank=4), "has the rank 4"),
        (lambda weight: weight["more"][1].update(shape=[3, 4]), "has 3 parts that cannot be added"),
        (lambda weight: weight["more"][1].update(dtype="BF16"), "has 3 parts that cannot be added"),
        (lambda weight: weight["more"][1].update(bits=0), "is a mask"),
        (lambda weight: weight["more"][1].update(more=[]), "more"),
        (lambda weight: weight.update(more=4 * weight["more"]), "more"),
        (lambda weight: weight["more"].pop(), "its table lists"),
        (lambda weight: weight["more"][0]["blocks"].pop(), "its table lists"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    path: Path, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    assert expected in message(damage_table(path, lambda tensors: change(tensors["weight"])))


def test_factors_of_a_shared_vector_have_no_parts(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "product.fsw", tmp_path)
    changed = damage_table(
        tmp_path / "product.fsw",
        lambda tensors: tensors["weight"].update(more=[tensors["weight"] | {"blocks": [], "shape": [0, 3]}]),
    )
    assert "has 2 parts that cannot be added" in message(changed)


def test_damage_is_reported_with_the_part(path: Path) -> None:
    first = open_artifact(path).header.tensors["weight"].size
    flip_block_bit(path, 8 * first)
    found = refusal(DecodeError, lambda: list(ArtifactVector(open_artifact(path)).blocks("weight")))
    assert found.startswith(f"{path}: tensor 'weight', part 1, block 0, is damaged")
    assert "part 1" in refusal(ArtifactError, lambda: verify(path))


def test_more_parts_than_a_reader_takes_are_not_written() -> None:
    with pytest.raises(ValueError, match="more"):
        packed_parts(PARTS[2:] * 9)
