"""Tests that a `/` in the name of a stored tensor leads only into the folder of a module."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.artifact_files import (
    EXTRAS,
    HEADER,
    ROWS,
    Document,
    damage,
    damage_whole_table,
    message,
    read_all,
)
from support.sparse_tensors import write_artifact

from flexswitch.codecs.errors import ArtifactError
from flexswitch.codecs.format.tensor_names import check_tensor_names

OUTSIDE = [
    "/tmp/x/evil", "../../e/evil", "../evil", "a/b/c/d", "a/b", "/x", "x/", "/", "./x", "1_Dense/", "1_Dense/a/b",
    "1_Dense/../x", "1_Dense/../../x", ".1_Dense/x", "1_De.nse/x", "1_/../x", "1_Dense//x", "1_Dénse/x", "1_Dense\n/x",
    "1Dense/x", f"1_{'D' * 65}/x", "1234_Dense/x", "~/x", "C:/x", "..\\/x", "file/x", "entries/x",
]  # fmt: skip
INSIDE = ["weight", "a.b.c", "..", "~", "a\\b", "1_Dense/linear.weight", "2_Dense/..", "0_x/a\nb"]
ADVICE = (
    "has a '/', which only a module's tensor may have, as in 2_Dense/linear.weight; rename it if you trust"
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        check_tensor_names("x.fsw", ["weight", name], ArtifactError)
    assert str(caught.value) == f"x.fsw: tensor '{name}' {ADVICE} the file"


def test_names_without_a_folder_or_in_a_module_are_accepted() -> None:
    check_tensor_names("x.fsw", INSIDE, ArtifactError)


def renamed(kind: str, old: str, new: str) -> Callable[[Document], None]:
    """Returns a change of a table that gives one of its records another name."""

    def change(table: Document) -> None:
        table[kind] = {new if name == old else name: record for name, record in table[kind].items()}

    return change


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "sst2.fsw", ROWS, EXTRAS, HEADER)


@pytest.mark.parametrize("name", ["/tmp/x/evil", "../../e/evil", "a/b/c/d"])
def test_an_artifact_with_such_a_name_is_not_opened(path: Path, name: str) -> None:
    damage_whole_table(path, renamed("tensors", "encoder.weight", name))
    assert message(path) == f"tensor '{name}' {ADVICE} the file"


def test_an_artifact_with_such_an_extra_is_not_opened(path: Path) -> None:
    damage_whole_table(path, renamed("extras", next(iter(EXTRAS)), "../evil"))
    assert message(path) == f"extra '../evil' {ADVICE} the file"


@pytest.mark.parametrize("prefix", ["/tmp/x/", "../", "a/b."])
def test_an_artifact_with_such_a_prefix_is_not_opened(path: Path, prefix: str) -> None:
    damage(path, lambda document: document.update(model={"prefix": prefix}))
    assert message(path) == f"with its prefix, a tensor '{prefix}weight' {ADVICE} the file"


def test_an_artifact_with_the_tensors_of_a_module_is_opened(path: Path) -> None:
    damage_whole_table(path, renamed("tensors", "encoder.weight", "2_Dense/linear.weight"))
    read_all(path)
