"""Language models are compressed and restored, and run on padded texts."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import message
from support.tiny_language_models import (
    POSITIONS,
    save_language_base,
    save_language_model,
    write_language_tokenizer,
)
from support.tiny_models import WIDTH, make_artifact, save_state, texts

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.models.outputs import output_kind
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.model_directory import write_model_directory
from flexswitch.merging.task_vectors.open_vector import open_finetuned
from flexswitch.merging.task_vectors.restore import restored_tensors

CAUSAL = "hf-causal-lm"
KINDS = ("gpt2", "llama")
TEXTS = texts("birds", 6, seed=0)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {kind: save_language_base(folder / kind, kind) for kind in KINDS}


@pytest.fixture
def base(bases, tmp_path):
    """A copy of the GPT-2 that a test may change."""
    return shutil.copytree(bases["gpt2"], tmp_path / "base")


def adapter_of(base):
    return get_adapter(open_checkpoint(str(base)), CAUSAL)


def loaded(adapter, model, outputs):
    """Returns a model with the weights of restored tensors."""
    load_weights(
        model, {adapter.parameter_name(name): each.whole() for name, each in outputs.items()}, "task"
    )
    return model


def tokens_of(base, text):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)(text, return_tensors="pt").input_ids[:, :POSITIONS]


# --- compressing and restoring ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_language_model_gives_the_same_logits_as_transformers(bases, tmp_path, kind):
    from transformers import AutoModelForCausalLM

    base = bases[kind]
    finetuned = save_language_model(base, tmp_path / "tuned", seed=1)
    artifact = make_artifact(base, finetuned, tmp_path / "birds.fsw", "t-switch")
    assert artifact.header.model.adapter == CAUSAL
    checkpoint, vector = open_checkpoint(str(base)), ArtifactVector(artifact)
    outputs = restored_tensors(checkpoint, vector, 1.0, None)
    write_model_directory(
        tmp_path / "out", outputs, checkpoint, vector.model.config, str, 10**9, False, lambda name: None
    )
    adapter = adapter_of(base)
    model = loaded(adapter, adapter.model(vector.model.config, vector.extras), outputs)
    assert not model.training
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    untouched = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        batch = adapter.batch(TEXTS)
        found = adapter.logits(model, batch)
        assert found.shape == (*batch["input_ids"].shape, 40)
        for row, text in enumerate(TEXTS):
            tokens = tokens_of(base, text)
            expected = whole(input_ids=tokens).logits[0]
            torch.testing.assert_close(found[row, : len(expected)], expected, rtol=0, atol=1e-4)
            assert (untouched(input_ids=tokens).logits[0] - expected).abs().max() > 0.1
    assert output_kind(vector.model.config, found) == "tokens"


def test_a_tied_head_follows_its_embedding_under_either_name(bases):
    adapter = adapter_of(bases["gpt2"])
    saved = load_file(bases["gpt2"] / "model.safetensors")
    assert "lm_head.weight" not in saved
    table = saved.pop("transformer.wte.weight") + 1
    for name in ("transformer.wte.weight", "lm_head.weight"):
        model = adapter.model({}, {})
        assert model.lm_head.weight is model.transformer.wte.weight
        load_weights(model, saved | {name: table}, "there")
        assert torch.equal(model.lm_head.weight, table)
        assert names_inside(model, [*saved, adapter.parameter_name(name)])[name] == name


def test_a_fine_tune_of_a_base_without_a_head_is_a_language_model(bases, tmp_path):
    from transformers import GPT2Model

    headless = tmp_path / "headless"
    GPT2Model.from_pretrained(bases["gpt2"]).save_pretrained(headless)
    write_language_tokenizer(headless)
    finetuned = save_language_model(bases["gpt2"], tmp_path / "tuned", seed=1)
    checkpoint = open_checkpoint(str(headless))
    vector = open_finetuned(str(finetuned), checkpoint)
    assert (vector.model.adapter, vector.model.prefix, list(vector.extras)) == (CAUSAL, "transformer.", [])
    adapter = adapter_of(headless)
    outputs = restored_tensors(checkpoint, vector, 1.0, torch.float32)
    model = loaded(adapter, adapter.model(vector.model.config, vector.extras), outputs)
    expected = load_file(finetuned / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(model.lm_head.weight, expected)


def test_a_missing_untied_head_is_reported(bases, tmp_path):
    base = shutil.copytree(bases["llama"], tmp_path / "base")
    state = load_file(base / "model.safetensors")
    del state["lm_head.weight"]
    model = adapter_of(base).model({}, {})
    assert message(InputError, lambda: load_weights(model, state, "there")) == (
        "there: lacks 'lm_head.weight', which the model of its config.json has"
    )


# --- texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_a_texts_logits(bases, kind):
    adapter = adapter_of(bases[kind])
    outputs = load_file(bases[kind] / "model.safetensors")
    model = adapter.model({}, {})
    load_weights(model, outputs, "base")
    with torch.no_grad():
        batch = adapter.batch(TEXTS)
        together = adapter.logits(model, batch)
        for row, text in enumerate(TEXTS):
            alone = adapter.logits(model, adapter.batch([text]))[0]
            assert batch["attention_mask"][row].tolist() == [1] * len(alone) + [0] * (
                len(together[row]) - len(alone)
            )
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-5)


def test_the_end_token_pads_if_there_is_no_pad_token(bases):
    batch = adapter_of(bases["gpt2"]).batch(["word1", "word1 word2 word3"])
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert batch["input_ids"].tolist() == [[2, 5, 3, 3, 3], [2, 5, 6, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]


def test_an_existing_pad_token_is_kept(base):
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "[PAD]"}))
    batch = adapter_of(base).batch(["word1", "word1 word2"])
    assert batch["input_ids"].tolist() == [[2, 5, 3, 0], [2, 5, 6, 3]]


def test_a_tokenizer_with_neither_pad_nor_end_token_is_refused(base):
    write_language_tokenizer(base, ends=False)
    assert message(InputError, lambda: adapter_of(base)) == (
        f"{base}: its tokenizer has neither a pad_token nor an eos_token; set one in its tokenizer_config.json"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_cut_at_the_models_positions(bases, kind):
    batch = adapter_of(bases[kind]).batch(["word1 " * 100])
    assert batch["input_ids"].shape == (1, POSITIONS)


@pytest.mark.parametrize("inputs", [[""], ["", ""], ["", "word1 word2"]])
def test_a_text_without_tokens_does_not_change_the_other_texts(base, inputs):
    write_language_tokenizer(base, frames=False)
    adapter = adapter_of(base)
    batch = adapter.batch(inputs)
    assert batch["attention_mask"].sum(1).tolist() == [len(text.split()) for text in inputs]
    with torch.no_grad():
        features = adapter.features(adapter.encoder(), batch, "pooled")
    assert features.isfinite().all()
    assert features[0].tolist() == [0.0] * WIDTH


def test_images_are_refused_as_texts(bases):
    assert message(InputError, lambda: adapter_of(bases["gpt2"]).batch(np.zeros((2, 3, 8, 8)))) == (
        "the examples are an array of shape (2, 3, 8, 8), expected texts"
    )


@pytest.mark.parametrize("features", ["pooled", "layer:1"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_mean_over_a_texts_tokens(bases, kind, features):
    from transformers import AutoModel

    adapter = adapter_of(bases[kind])
    plain = AutoModel.from_pretrained(bases[kind]).eval()
    with torch.no_grad():
        found = adapter.features(adapter.encoder(), adapter.batch(TEXTS), features)
        assert found.shape == (len(TEXTS), WIDTH)
        for row, text in enumerate(TEXTS):
            output = plain(input_ids=tokens_of(bases[kind], text), output_hidden_states=True)
            hidden = output.last_hidden_state if features == "pooled" else output.hidden_states[1]
            torch.testing.assert_close(found[row], hidden[0].mean(0), rtol=0, atol=1e-5)


def test_no_cache_is_kept_for_generating(bases):
    adapter = adapter_of(bases["llama"])
    with torch.no_grad():
        output = adapter.model({}, {})(**adapter.batch(TEXTS))
    assert output.past_key_values is None


def test_a_half_precision_language_model_runs_in_float32(base):
    state = load_file(base / "model.safetensors")
    save_state(base / "model.safetensors", {name: tensor.bfloat16() for name, tensor in state.items()})
    adapter = adapter_of(base)
    for module in (adapter.encoder(), adapter.model({"dtype": "bfloat16"}, {})):
        assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
