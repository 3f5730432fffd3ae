"""Every tensor of a base and of its fine-tune is in the restored model, over many architectures of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.situations import restored, restored_from_vector
from support.tiny_architectures import MIXTURES, PLAIN, VISION_LANGUAGE, tiny_model
from support.tiny_models import changed_state
from torch import Tensor

QUICK = ("MixtralForCausalLM", "LlavaForConditionalGeneration", "ViTForImageClassification")
ARCHITECTURES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.deep)
    for name in (*MIXTURES, *VISION_LANGUAGE, *PLAIN)
]


def loaded(name: str, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the weights that transformers loads from a directory, and what it reports."""
    kind = getattr(transformers, name)
    model, info = kind.from_pretrained(
        path, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    return model.state_dict(), info


def save_finetuned(model: Any, folder: Path, is_running: bool) -> Path:
    """Writes a fine-tune: as transformers saves it, or the state dict of the running model alone."""
    model.load_state_dict(changed_state(model.state_dict(), 7, size=0.1))
    if not is_running:
        model.save_pretrained(folder / "task")
        return folder / "task"
    torch.save(model.state_dict(), folder / "task.pt")
    return folder / "task.pt"


def test_the_law_covers_enough_architectures() -> None:
    assert len(ARCHITECTURES) >= 60
    assert len(MIXTURES) >= 15
    assert len(VISION_LANGUAGE) >= 10


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("is_running", [False, True], ids=["saved", "running"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_of_base_and_fine_tune_is_restored(tmp_path: Path, name: str, is_running: bool) -> None:
    model = tiny_model(name, seed=int(is_running))
    model.save_pretrained(tmp_path / "base")
    before = loaded(name, tmp_path / "base")[1]
    task = save_finetuned(model, tmp_path, is_running)
    expected = model.state_dict()
    for path, tolerance in (
        (restored_from_vector(tmp_path / "one", tmp_path / "base", task), 0.0),
        (restored(tmp_path / "two", tmp_path / "base", task), 1e-6),
    ):
        found, info = loaded(name, path)
        assert info == before
        assert found.keys() == expected.keys()
        for tensor in found:
            torch.testing.assert_close(found[tensor], expected[tensor], rtol=0, atol=tolerance, msg=tensor)
