"""Tasks that are computed by a shared vector: what is read, and what of them is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.write import write_shared
from support.artifact_files import GOLDEN, damage, damage_table, message
from support.checkpoints import message as refusal
from support.sparse_tensors import BASE, header, sparse_tensor, write_artifact

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.shared_vector import check_shared, join
from flexswitch.codecs.format.zoo import file_sha256
from flexswitch.codecs.registry import stored_codec
from flexswitch.merging.task_vectors.shared_vector import artifact_vector

Change = Callable[[dict[str, Any]], object]


def joined(folder: Path, rule: str) -> Artifact:
    task, vector = open_artifact(folder / f"{rule}.fsw"), folder / "vector.fsw"
    join(task, open_artifact(vector), file_sha256(vector))
    return task


def values(task: Artifact, name: str, size: int | None = None) -> list[float]:
    return np.concatenate(list(artifact_vector(task).blocks(name, size))).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copies of the golden files, which a test may change."""
    for name in ("vector", "sum", "product"):
        shutil.copy(GOLDEN / f"{name}.fsw", tmp_path)
    return tmp_path


@pytest.mark.parametrize("size", [None, 1, 5])
def test_the_golden_files_are_read(tmp_path: Path, size: int | None) -> None:
    write_shared(tmp_path)
    for place in (GOLDEN, tmp_path):
        product, total = joined(place, "product"), joined(place, "sum")
        assert list(artifact_vector(product).tensors) == ["weight"]
        assert values(product, "weight", size) == [1.5, 0, 0, 6, 7.5, 0, 0, 0, 0, 0, 0, 18]
        assert list(artifact_vector(total).tensors) == ["bias", "own", "weight"]
        assert values(total, "weight", size) == [1.5, 2, 1, 5, 5, 2, 7, 8, 9, 9.5, 11, 14]
        assert values(total, "bias", size) == [0.5, -0.5]
        assert values(total, "own", size) == [0, 0.75, 0]


@pytest.mark.parametrize("rule", ["product", "sum"])
def test_a_task_outside_its_zoo_is_opened_but_not_computed(rule: str) -> None:
    task = open_artifact(GOLDEN / f"{rule}.fsw")
    task.check("weight")
    found = refusal(InputError, lambda: artifact_vector(task))
    assert found.endswith("open the zoo instead of this file, and give the task by its name")


@pytest.mark.parametrize(
    ("rule", "change", "expected"),
    [
        ("product", lambda tensors: tensors["weight"].update(zero=2), "a zero point and levels of 0 bits"),
        ("product", lambda tensors: tensors["weight"].update(rank=1), "has the rank 1, and its values are factors"),
        ("sum", lambda tensors: tensors["weight"].update(bits=0), "is a mask, and its values are added to shared"),
        ("sum", lambda tensors: tensors["weight"].update(rank=4), "has the rank 4, and its values are added"),
        ("sum", lambda tensors: tensors["weight"].update(shape=[4, 3, 1]), "of shape [4, 3, 1] has the rank 1"),
        ("sum", lambda tensors: tensors["weight"].update(shape=[1 << 33, 1 << 33]), "expected 17,179,869,184 at"),
        ("vector", lambda tensors: tensors["bias"].update(bits=0), "is a mask, and its values are its own alone"),
        ("vector", lambda tensors: tensors["weight"].update(rank=4), "has the rank 4, and its values are its own"),
    ],
)  # fmt: skip
def test_a_tensor_that_its_rule_does_not_allow_is_refused(
    folder: Path, rule: str, change: Change, expected: str
) -> None:
    assert expected in message(damage_table(folder / f"{rule}.fsw", change))


@pytest.mark.parametrize("rule", ["difference", None, 1])
def test_an_unknown_rule_is_refused(folder: Path, rule: object) -> None:
    changed = damage(folder / "sum.fsw", lambda document: document["shared"].update(rule=rule))
    assert "shared.rule" in message(changed)


@pytest.mark.parametrize(
    ("rule", "change", "expected"),
    [
        ("product", lambda tensors: tensors.update(other=tensors.pop("weight")), "has no such tensor"),
        ("product", lambda tensors: tensors["weight"].update(shape=[3, 4]), "has it with the shape [4, 3]"),
        ("sum", lambda tensors: tensors["weight"].update(shape=[3, 4]), "has it with the shape [4, 3]"),
    ],
)
def test_tensors_that_do_not_fit_the_shared_ones_are_refused(
    folder: Path, rule: str, change: Change, expected: str
) -> None:
    damage_table(folder / f"{rule}.fsw", change)
    assert expected in refusal(ArtifactError, lambda: joined(folder, rule))


def test_another_shared_vector_is_refused(folder: Path) -> None:
    task, vector = open_artifact(folder / "sum.fsw"), open_artifact(folder / "vector.fsw")
    found = refusal(ArtifactError, lambda: join(task, vector, "ab" * 32))
    assert f"needs the shared vector {file_sha256(vector.path)[:12]}, and its zoo has {'ab' * 6};" in found
    assert "and its zoo has none;" in refusal(ArtifactError, lambda: join(task, None, None))
    assert task.shared is None


def test_a_task_that_needs_none_gets_none(folder: Path) -> None:
    vector = open_artifact(folder / "vector.fsw")
    join(vector, vector, "ab" * 32)
    assert vector.shared is None


@pytest.mark.parametrize("name", ["sum", "product", "head"])
def test_only_a_plain_artifact_of_the_base_is_a_shared_vector(folder: Path, name: str) -> None:
    check_shared(open_artifact(folder / "vector.fsw"), BASE.fingerprint)
    tensors = {"w": (sparse_tensor((2,), [0], [0], 1), 1.0, stored_codec("raw", {}))}
    if name == "head":
        from support.artifact_files import EXTRAS

        write_artifact(folder / "head.fsw", tensors, EXTRAS, header())
    for artifact, base in ((open_artifact(folder / f"{name}.fsw"), BASE.fingerprint),
                           (open_artifact(folder / "vector.fsw"), "12" * 32)):  # fmt: skip
        assert "expected a shared vector" in refusal(ArtifactError, lambda: check_shared(artifact, base))  # noqa: B023
