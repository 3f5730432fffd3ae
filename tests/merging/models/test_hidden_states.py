"""Means of hidden states, compared with transformers alone for several model families, with and without heads."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.checkpoints import message
from support.tiny_models import WIDTH, bert_config, vit_config
from torch import nn

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.models.hidden_states import (
    in_short_parts,
    layer_count,
    layer_means,
    mean_pool,
    pooled_mean,
)

LAYERS = 3
SIZES = {"vocab_size": 40, "num_hidden_layers": LAYERS, "max_position_embeddings": 16}


def text_batch(seed=0, samples=5, tokens=9):
    """Returns texts of 1 to `tokens` tokens, padded on the right."""
    generator = np.random.Generator(np.random.PCG64(seed))
    lengths = generator.integers(1, tokens + 1, samples)
    ids = torch.from_numpy(generator.integers(4, 40, (samples, tokens)))
    mask = torch.from_numpy((np.arange(tokens) < lengths[:, None]).astype(np.int64))
    return {"input_ids": ids * mask, "attention_mask": mask}


def image_batch():
    return {"pixel_values": torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def bert(kind):
    return kind(bert_config(**SIZES)), text_batch()


def distilbert(kind):
    from transformers import DistilBertConfig

    config = DistilBertConfig(vocab_size=40, dim=WIDTH, n_layers=LAYERS, n_heads=2, hidden_dim=24)
    return kind(config), text_batch()


def gpt2(kind):
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=40, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return kind(config), text_batch()


def llama(kind):
    from transformers import LlamaConfig

    config = LlamaConfig(
        **SIZES, hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1,
        pad_token_id=0,
    )  # fmt: skip
    return kind(config), text_batch()


def albert(kind):
    from transformers import AlbertConfig

    config = AlbertConfig(
        **SIZES, hidden_size=WIDTH, embedding_size=8, intermediate_size=24, num_attention_heads=2
    )
    return kind(config), text_batch()


def vit(kind):
    return kind(vit_config(num_hidden_layers=LAYERS)), image_batch()


FAMILIES = {
    "bert": (bert, "BertModel"),
    "bert with a head": (bert, "BertForSequenceClassification"),
    "distilbert": (distilbert, "DistilBertModel"),
    "distilbert with a head": (distilbert, "DistilBertForSequenceClassification"),
    "gpt2": (gpt2, "GPT2Model"),
    "gpt2 with a head": (gpt2, "GPT2LMHeadModel"),
    "llama": (llama, "LlamaModel"),
    "llama with a head": (llama, "LlamaForCausalLM"),
    "albert, whose layers are one": (albert, "AlbertModel"),
    "vit": (vit, "ViTModel"),
    "vit with a head": (vit, "ViTForImageClassification"),
}


def make(name):
    import transformers

    family, kind = FAMILIES[name]
    torch.manual_seed(0)
    model, batch = family(getattr(transformers, kind))
    return model.eval(), batch


@pytest.fixture(scope="module", params=FAMILIES)
def model_and_batch(request):
    return make(request.param)


def plain_states(model, batch):
    with torch.no_grad():
        return model(**batch, output_hidden_states=True).hidden_states


def plain_mean(hidden, batch):
    """Returns the mean over each sample's own tokens, computed sample by sample."""
    lengths = batch["attention_mask"].sum(1) if "attention_mask" in batch else [hidden.shape[1]] * len(hidden)
    return torch.stack([row[:length].double().mean(0) for row, length in zip(hidden, lengths, strict=True)])


def test_each_layer_is_transformers_own_hidden_state(model_and_batch):
    model, batch = model_and_batch
    states = plain_states(model, batch)
    assert layer_count(model) == LAYERS == len(states) - 1
    for layer, hidden in enumerate(states):
        with torch.inference_mode():
            found = layer_means(model, batch, [layer])
        assert (found.dtype, found.shape) == (torch.float32, (5, WIDTH))
        torch.testing.assert_close(found.double(), plain_mean(hidden, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", [(0, 2), (2, 0), (3, 1), (1, 1)])
def test_several_layers_are_concatenated_in_the_given_order(model_and_batch, layers):
    model, batch = model_and_batch
    with torch.inference_mode():
        found = layer_means(model, batch, layers)
        expected = torch.cat([layer_means(model, batch, [layer]) for layer in layers], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_pooled_mean_is_that_of_the_last_hidden_state():
    for name in ("bert", "gpt2", "vit"):
        model, batch = make(name)
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
            found = pooled_mean(model, batch)
        torch.testing.assert_close(found.double(), plain_mean(hidden, batch), rtol=0, atol=1e-5)


def layers_of(model):
    found = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == LAYERS]
    return found[0]


@pytest.mark.parametrize("name", [name for name in FAMILIES if "albert" not in name])
def test_no_layer_after_the_last_requested_one_runs(name):
    model, batch = make(name)
    layers = layers_of(model)
    ran = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    head = [each for part, each in model.named_children() if part in ("classifier", "lm_head")]
    for each in head:
        each.register_forward_hook(lambda *_: ran.append("head"))
    for last in range(LAYERS + 1):
        ran.clear()
        with torch.inference_mode():
            layer_means(model, batch, [last])
        assert ran == list(range(last))


def hooks_and_modules(model):
    return [
        (path, id(each), list(each._modules), len(each._forward_hooks), len(each._forward_pre_hooks))
        for path, each in model.named_modules()
    ]


def test_the_model_is_left_unchanged(model_and_batch):
    model, batch = model_and_batch
    with torch.inference_mode():
        model(
            **batch, output_hidden_states=True
        )  # transformers leaves hooks of its own at the first such call
    before, state = hooks_and_modules(model), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.inference_mode():
        answers = model(**batch)[0].clone()
        for layer in range(LAYERS):
            layer_means(model, batch, [layer])
        torch.testing.assert_close(model(**batch)[0], answers, rtol=0, atol=0)
    assert hooks_and_modules(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_layers_own_hooks_still_run():
    model, batch = make("bert")
    layers_of(model)[0].register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
    states = plain_states(model, batch)
    with torch.inference_mode():
        found = layer_means(model, batch, [2])
    torch.testing.assert_close(found.double(), plain_mean(states[2], batch), rtol=0, atol=1e-5)


def test_threads_can_compute_different_layers_at_the_same_time():
    model, _ = make("bert with a head")
    jobs = [(text_batch(seed), [seed % (LAYERS + 1)]) for seed in range(24)]

    def answer(job):
        with torch.inference_mode():
            return layer_means(model, *job), model(**job[0]).logits

    expected = [answer(job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(answer, jobs))
    for (means, logits), (plain_means, plain_logits) in zip(found, expected, strict=True):
        torch.testing.assert_close(means, plain_means, rtol=0, atol=1e-6)
        torch.testing.assert_close(logits, plain_logits, rtol=0, atol=1e-6)


def test_a_model_inside_another_module_is_found():
    model, batch = make("bert")
    wrapped = nn.ModuleDict({"encoder": model, "head": nn.Linear(WIDTH, 2)})
    with torch.inference_mode():
        assert torch.equal(layer_means(wrapped, batch, [1]), layer_means(model, batch, [1]))


def test_weights_swapped_for_one_call_are_used():
    model, batch = make("bert")

    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return layer_means(self.model, batch, [1])

    other, _ = make("bert")
    state = {f"model.{name}": 2 * tensor for name, tensor in other.state_dict().items()}
    with torch.inference_mode():
        found = torch.func.functional_call(Means(), state, ())
        other.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
        expected = layer_means(other, batch, [1])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_layer_that_the_model_lacks_is_refused():
    model, batch = make("bert")
    assert message(UsageError, lambda: layer_means(model, batch, [0, 4])) == (
        "features 'layer:4': the base has layer:0 (embeddings) … layer:3"
    )


def test_a_module_without_a_transformers_model_is_refused():
    assert message(InputError, lambda: layer_means(nn.Linear(2, 2), {}, [0])) == (
        "features of layers need a transformers model, but Linear contains none; give --features pooled"
    )


def test_means_of_bfloat16_layers_are_float32():
    model, batch = make("bert")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = layer_means(model, batch, [2])
    assert found.dtype == torch.float32
    with torch.inference_mode():
        torch.testing.assert_close(found, layer_means(model, batch, [2]), rtol=0, atol=0.05)


def test_without_transformers_no_module_has_layers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        InputError, match="features of layers need a transformers model, but Linear contains none"
    ):
        layer_means(nn.Linear(2, 2), {"input_ids": torch.zeros(1, 1)}, [0])


def test_a_text_without_tokens_has_the_mean_zero():
    pooled = mean_pool(torch.ones(2, 3, WIDTH), torch.tensor([[0, 0, 0], [1, 1, 0]]))
    assert pooled.tolist() == [[0.0] * WIDTH, [1.0] * WIDTH]


@pytest.mark.parametrize("side", ["right", "left"])
def test_samples_of_similar_length_are_computed_together_and_keep_their_order(side):
    from transformers import BertModel

    model = BertModel(bert_config(**SIZES)).eval()
    batch = text_batch(samples=70, tokens=12)
    lengths = torch.randint(1, 13, (70,), generator=torch.Generator().manual_seed(0))
    inside = torch.arange(12) < lengths[:, None]
    batch["attention_mask"] = (inside if side == "right" else inside.flip(1)).long()
    seen = []

    def means(part):
        seen.append(tuple(part["input_ids"].shape))
        return layer_means(model, part, [1])

    with torch.no_grad():
        found = in_short_parts(batch, means)
        torch.testing.assert_close(found, layer_means(model, batch, [1]), rtol=1e-4, atol=1e-5)
    assert sum(rows for rows, _ in seen) == 70
    longest = [int(each[-1]) for each in torch.split(lengths.sort().values, 16)]
    assert [tokens for _, tokens in seen] == (longest if side == "right" else [12])
