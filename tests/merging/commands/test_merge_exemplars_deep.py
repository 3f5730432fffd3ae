"""Every merge from examples on text classifiers, through the command, loaded by transformers."""

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import Toy, text_toy

import flexswitch
from flexswitch.merging.methods.registry import METHODS

NAMES = [method.name for method in METHODS if method.needs_exemplars and method.kind == "merge"]
FEW: dict[str, dict[str, Any]] = {
    "adamerging": {"steps": 3},
    "adamerging-plus": {"steps": 3, "by": "task"},
    "concrete-am": {"mask_steps": 2, "steps": 2},
    "concrete-ta": {"steps": 3},
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return text_toy(tmp_path_factory.mktemp("toy"))


@pytest.mark.deep
@pytest.mark.parametrize("method", NAMES)
def test_checkpoints_and_a_zoo_are_merged_from_texts(method: str, toy: Toy, tmp_path: Path) -> None:
    from transformers import BertModel

    if method == "df-merge":
        return  # its exemplars need labels
    for sources in (toy.pairs(), [str(toy.zoo)]):
        out = tmp_path / f"out{len(sources)}"
        made = flexswitch.merge(
            sources,
            out,
            base=toy.base,
            method=method,
            settings=FEW.get(method, {}),
            exemplars=toy.data,
            per_task=6,
        )
        assert set(made.report["exemplars"].values()) == {6}
        BertModel.from_pretrained(out)
