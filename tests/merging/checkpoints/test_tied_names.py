"""A tied tensor has one name, whatever a file holds of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import State, assert_same_state, compressed, file_pair, save_model
from torch import Tensor

from flexswitch.merging.checkpoints.fingerprint import fingerprint
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.tied_names import main_name
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.task_vectors.open_vector import open_finetuned
from flexswitch.merging.task_vectors.restore import restore

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def matrix(seed: int = 0, rows: int = 300) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def one_name(table: Tensor) -> State:
    """Returns a model that stores its tied table once, and two equal tensors that are not tied."""
    return {EMBED: table, "model.a.bias": torch.zeros(8), "model.b.bias": torch.zeros(8),
            "model.a.weight": matrix(5, 20), "model.b.weight": matrix(5, 20)}  # fmt: skip


def save_as(folder: Path, form: str, table: Tensor, config: dict[str, Any] | None = None) -> Path:
    state = one_name(table)
    if form == "safetensors with one name":
        return save_model(folder, state, config)
    if form == "bin with one name":
        return save_model(folder, state, config, kind="bin")
    if form == "bin with shared storage":
        return save_model(folder, state | {HEAD: table}, config, kind="bin")
    kind, shards = ("bin", 2) if form == "bin with two copies" else ("safetensors", 3)
    return save_model(folder, state | {HEAD: table.clone()}, config, kind, shards)


FORMS = ["safetensors with one name", "bin with one name", "bin with shared storage", "bin with two copies",
         "safetensors with two copies"]  # fmt: skip


@pytest.mark.parametrize("config", [None, {}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("form", FORMS)
def test_a_tied_base_has_one_fingerprint_in_all_its_forms(tmp_path: Path, form: str, config: Any) -> None:
    one = save_model(tmp_path / "one", one_name(matrix()))
    other = open_checkpoint(save_as(tmp_path / "other", form, matrix(), config))
    assert fingerprint(other) == fingerprint(open_checkpoint(one))
    assert EMBED in other.tensors
    assert other.aliases == ({} if "one name" in form else {HEAD: EMBED})


@pytest.mark.parametrize("entry", [0, 5, 2399])
def test_copies_that_differ_in_one_entry_are_two_tensors(tmp_path: Path, entry: int) -> None:
    other = matrix()
    other.view(-1)[entry] += 1
    opened = open_checkpoint(save_model(tmp_path, one_name(matrix()) | {HEAD: other}))
    assert opened.aliases == {}
    assert HEAD in opened.tensors


@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": False}, {"text_config": {"tie_word_embeddings": False}}]
)
def test_copies_are_two_tensors_where_the_config_says_so(tmp_path: Path, config: dict[str, Any]) -> None:
    opened = open_checkpoint(save_as(tmp_path, "safetensors with two copies", matrix(), config))
    assert opened.aliases == {}


def test_equal_tensors_that_are_no_embeddings_stay_apart(tmp_path: Path) -> None:
    opened = open_checkpoint(save_as(tmp_path, "safetensors with two copies", matrix()))
    assert {"model.a.bias", "model.b.bias", "model.a.weight", "model.b.weight"} <= opened.tensors.keys()
    state = one_name(matrix())
    del state["model.b.bias"]
    less = open_checkpoint(save_model(tmp_path / "less", state))
    assert fingerprint(less) != fingerprint(opened)


@pytest.mark.parametrize("base_form", FORMS)
@pytest.mark.parametrize("tuned_form", FORMS)
def test_a_task_of_a_tied_base_applies_to_every_form_of_it(
    tmp_path: Path, base_form: str, tuned_form: str
) -> None:
    """All pairs of forms: the table's change arrives under every name that the base of the merge has."""
    tuned = matrix() + matrix(1)
    base = open_checkpoint(save_as(tmp_path / "base", base_form, matrix()))
    vector = open_finetuned(str(save_as(tmp_path / "tuned", tuned_form, tuned)), base)
    assert EMBED in vector.tensors
    assert vector.extras == {}
    artifact = compressed(vector, tmp_path / "t.fsw", "p-discard", drop=0.0)
    for number, form in enumerate(FORMS):
        other = save_as(tmp_path / f"other{number}", form, matrix())
        expected = one_name(tuned) | ({} if "one name" in form else {HEAD: tuned})
        assert_same_state(restore(other, artifact), expected)


def test_a_merge_writes_every_name_of_a_tied_base(tmp_path: Path) -> None:
    base = save_as(tmp_path / "base", "safetensors with two copies", matrix())
    tuned = save_as(tmp_path / "tuned", "safetensors with one name", matrix() * 2)
    merge([tuned], tmp_path / "out", base=base, method="average")
    out = open_checkpoint(tmp_path / "out")
    assert out.aliases == {HEAD: EMBED}
    torch.testing.assert_close(out.read(EMBED), (matrix() * 2).view(-1))


def test_a_head_that_was_trained_apart_is_kept_beside_the_embedding(tmp_path: Path) -> None:
    base = save_as(tmp_path / "base", "safetensors with two copies", matrix())
    apart = one_name(matrix(1)) | {HEAD: matrix(2)}
    vector = open_finetuned(str(save_model(tmp_path / "tuned", apart)), open_checkpoint(base))
    assert_same_state(restore(base, vector), apart)


@pytest.mark.parametrize(
    ("main", "others"),
    [
        ("model.embed_tokens.weight", ["lm_head.weight"]),
        ("transformer.wte.weight", ["lm_head.weight"]),
        ("bert.embeddings.word_embeddings.weight", ["cls.predictions.decoder.weight"]),
        ("cls.predictions.bias", ["cls.predictions.decoder.bias"]),
        ("roberta.embeddings.word_embeddings.weight", ["lm_head.decoder.weight"]),
        ("shared.weight", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]),
        ("model.shared.weight", ["model.encoder.embed_tokens.weight", "lm_head.weight"]),
        ("model.decoder.embed_tokens.weight", ["proj_out.weight"]),
        ("gpt_neox.embed_in.weight", ["embed_out.weight"]),
        ("tied.a", ["tied.b", "deeper.tied.a"]),
    ],
)
def test_the_main_name_is_the_one_that_transformers_saves(main: str, others: list[str]) -> None:
    assert main_name([main, *others]) == main_name([*others, main]) == main


@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5"])
def test_models_of_transformers_keep_the_main_names(tmp_path: Path, kind: str) -> None:
    import transformers

    makers = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=40, n_positions=8, n_embd=8, n_layer=1, n_head=2)
        ),
        "bert": lambda: transformers.BertForMaskedLM(
            transformers.BertConfig(
                vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
            )
        ),
        "t5": lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        ),
    }
    model = makers[kind]()
    model.save_pretrained(tmp_path / "safetensors")
    (tmp_path / "bin").mkdir()
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    saved, state = (open_checkpoint(tmp_path / form) for form in ("safetensors", "bin"))
    assert saved.aliases == {} != state.aliases
    assert fingerprint(saved) == fingerprint(state)


def test_a_pair_of_tied_files_without_a_config_is_paired_once(tmp_path: Path) -> None:
    both = one_name(matrix()) | {HEAD: matrix()}
    pair = file_pair(tmp_path, both, {name: tensor + 1 for name, tensor in both.items()})
    assert HEAD not in pair.tensors
    assert pair.extras == {}
