"""Tensor names that lead out of a model's directory are refused before anything is written."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import file_pair, message
from support.tiny_models import changed_state, tiny_state

from flexswitch.codecs.errors import InputError
from flexswitch.merging.commands.merge import merge


@pytest.mark.parametrize(
    "name", ["/evil", "../../out/evil", "{tmp}/evil", "a/b/c/d", "1_Dense/../../evil", "a/b"]
)
def test_a_name_that_leads_out_of_the_output_is_refused(name: str, tmp_path: Path) -> None:
    name = name.format(tmp=tmp_path / "victim")
    (tmp_path / "victim").mkdir()
    base = tiny_state()
    pair = file_pair(tmp_path, base, {**changed_state(base, 1), name: torch.ones(3)})
    found = message(
        InputError,
        lambda: merge([pair.source], tmp_path / "out", base=pair.base.source, task=Path(pair.source).stem),
    )
    assert found.startswith(f"tensor '{name}': a '/' may only follow the folder of a module")
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "victim").iterdir())
    assert not Path("/model.safetensors").exists()
