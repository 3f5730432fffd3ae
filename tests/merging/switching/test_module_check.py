"""Models as transformers loads them are found to hold their base, whatever heads either of the two has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import message
from support.tiny_models import bert_config, changed_state

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.add_task import add_task


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def gpt2(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    return getattr(transformers, kind)(config).eval()


def bert(kind: str, **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, kind)(bert_config(**changes)).eval()


def task_of(base: Path, model: Any, folder: Path) -> Artifact:
    """Returns the artifact of a fine-tune of all floating weights."""
    model.load_state_dict(changed_state(model.state_dict(), seed=3))
    model.tie_weights()
    return compress(saved(model, folder / "tuned"), folder / "task.fsw", base=base, on_resize="extra")


CASES = {
    "a masked language model's base in a classifier": (
        bert,
        "BertForMaskedLM",
        "BertForSequenceClassification",
    ),
    "a masked language model's base in an encoder": (bert, "BertForMaskedLM", "BertModel"),
    "an encoder's base in a classifier": (bert, "BertModel", "BertForSequenceClassification"),
    "an encoder's base in a tied language model": (gpt2, "GPT2Model", "GPT2LMHeadModel"),
    "a tied language model's base in itself": (gpt2, "GPT2LMHeadModel", "GPT2LMHeadModel"),
    "a tied language model's base in a classifier": (
        gpt2,
        "GPT2LMHeadModel",
        "GPT2ForSequenceClassification",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_was_loaded_from_the_base_holds_it(
    tmp_path: Path, case: str, dtype: torch.dtype
) -> None:
    import transformers

    make, base_kind, kind = CASES[case]
    base = saved(make(base_kind), tmp_path / "base")
    task = task_of(base, make(base_kind), tmp_path)
    module = getattr(transformers, kind).from_pretrained(base, dtype=dtype).eval()
    SwitchedModel(module, {"task": task}, strict=False)
    with torch.no_grad():
        next(iter(module.base_model.parameters())).view(-1)[-1].add_(1)
    found = message(InputError, lambda: SwitchedModel(module, {"task": task}, strict=False))
    assert "differs from that of" in found


def test_a_model_made_without_transformers_is_checked_by_its_hash(tmp_path: Path) -> None:
    base = saved(gpt2("GPT2LMHeadModel"), tmp_path / "base")
    task = task_of(base, gpt2("GPT2LMHeadModel"), tmp_path)
    module = gpt2("GPT2LMHeadModel")  # of the same seed: the base's weights, from nowhere
    assert module.name_or_path == ""
    SwitchedModel(module, {"task": task})
    add_task(module.state_dict(), task)
    assert "fingerprint" in message(InputError, lambda: SwitchedModel(module, {"task": task}))


def test_a_model_that_was_loaded_from_elsewhere_is_checked_by_its_hash(tmp_path: Path) -> None:
    import transformers

    base = saved(gpt2("GPT2LMHeadModel"), tmp_path / "base")
    task = task_of(base, gpt2("GPT2LMHeadModel"), tmp_path)
    copy = saved(transformers.GPT2LMHeadModel.from_pretrained(base), tmp_path / "copy")
    module = transformers.GPT2LMHeadModel.from_pretrained(copy).eval()
    SwitchedModel(module, {"task": task})
    tuned = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "tuned").eval()
    assert "fingerprint" in message(InputError, lambda: SwitchedModel(tuned, {"task": task}))
    tuned.load_state_dict(module.state_dict())
    SwitchedModel(tuned, {"task": task})


def test_a_model_of_the_hub_is_compared_with_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers
    from huggingface_hub import constants

    commit = "0123456789abcdef" * 2 + "01234567"
    base = saved(bert("BertForMaskedLM"), tmp_path / "models--org--base" / "snapshots" / commit)
    task = task_of(base, bert("BertForMaskedLM"), tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    module = transformers.BertModel.from_pretrained(base).eval()
    module.config.name_or_path, module.config._commit_hash = "org/base", commit
    module.name_or_path = "org/base"
    SwitchedModel(module, {"task": task}, strict=False)
    module.config._commit_hash = "f" * 40
    found = message(InputError, lambda: SwitchedModel(module, {"task": task}, strict=False))
    assert "give base= to compare with" in found


def test_some_of_the_weights_are_enough_beside_the_base(tmp_path: Path) -> None:
    base = saved(bert("BertForMaskedLM"), tmp_path / "base")
    task = compress(base, tmp_path / "task.fsw", base=base)  # no change: any weights fit
    state = load_file(base / "model.safetensors")
    add_task(state, task)
    del state["cls.predictions.bias"]
    assert "give base= to compare with" in message(InputError, lambda: add_task(state, task))
    add_task(state, task, base=base)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    assert "give base= to compare with" in message(InputError, lambda: add_task(half, task))
    add_task(half, task, base=base)
    codes = {name: tensor.to(torch.int8) for name, tensor in state.items()}
    assert "differs from that of" in message(InputError, lambda: add_task(codes, task, base=base))


def test_a_tied_tensor_that_the_model_holds_twice_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base.pt"
    table = torch.ones(4, 3)
    torch.save({"model.embed_tokens.weight": table, "lm_head.weight": table}, base)
    task = compress(base, tmp_path / "task.fsw", base=base)
    tied = {"model.embed_tokens.weight": table, "lm_head.weight": table}
    add_task(tied, task)
    add_task(tied, task, base=base)
    apart = tied | {"lm_head.weight": table.clone()}
    assert message(InputError, lambda: add_task(apart, task, base=base)).endswith(
        f"it holds 'lm_head.weight' and 'model.embed_tokens.weight' apart, which {base} ties"
    )
    assert "fingerprint" in message(InputError, lambda: add_task(apart, task))
