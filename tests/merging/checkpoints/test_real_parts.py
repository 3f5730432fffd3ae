"""Fine-tunes of a part of a base: of the language model inside a vision-language model."""

from pathlib import Path
from typing import Any

import pytest
from support.situations import Checkpoints, assert_right, refusal, text_answers
from support.tiny_architectures import tiny_model
from support.tiny_models import changed_state
from torch import Tensor


def save_part(folder: Path, base: str, part: str) -> dict[str, Tensor]:
    """Writes a base, the language model in it and its fine-tune; returns the state of the base."""
    import transformers

    whole = tiny_model(base, seed=0)
    whole.save_pretrained(folder / "base")
    state: dict[str, Tensor] = whole.state_dict()
    kind: Any = getattr(transformers, part)
    model = kind(whole.config.text_config)
    inner = {name.replace("model.language_model.", "model."): tensor for name, tensor in state.items()}
    model.load_state_dict({name: inner[name] for name in model.state_dict()})
    model.save_pretrained(folder / "part")
    model.load_state_dict(changed_state(model.state_dict(), 1, size=0.2))
    model.save_pretrained(folder / "task")
    return state


def causal(path: Path) -> Tensor:
    return text_answers(path, "AutoModelForCausalLM")


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_part_under_other_names_is_refused_and_right_on_its_own(tmp_path: Path) -> None:
    save_part(tmp_path, "Mistral3ForConditionalGeneration", "MistralForCausalLM")
    assert refusal(tmp_path, tmp_path / "base", tmp_path / "task") == (
        "TASK: is a mistral, a part of the base BASE, where its names begin with 'language_model.'; give that "
        "part as the base, as a model of its own"
    )
    assert_right(tmp_path, Checkpoints(tmp_path / "part", tmp_path / "task", causal))  # as the message says
