"""A language model's outputs in chunks of tokens, against all logits at once in float64."""

import numpy as np
import pytest
import torch
from support.tiny_language_models import save_encoder_decoder, save_language_base
from support.tiny_models import WIDTH

from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models import token_outputs as module
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.conversations import Completion
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.models.token_outputs import (
    next_token_loss,
    token_agreement,
    token_divergence,
    token_outputs,
)

TEXTS = ["word1 word2 word3", Completion("word1 word2 ", "word3 word4"), "word5"]
# Of gemma2, the head is followed by a limit of the logits; llama has a head of its own, the others a tied one.
KINDS = {
    "gpt2": "hf-causal-lm",
    "llama": "hf-causal-lm",
    "gemma2": "hf-causal-lm",
    "t5": "hf-seq2seq-lm",
    "bart": "hf-seq2seq-lm",
}


def log_softmax(array):
    shifted = array - array.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    """An adapter, two models and a batch."""
    folder, kind = tmp_path_factory.mktemp("models"), request.param
    save = save_encoder_decoder if kind in ("t5", "bart") else save_language_base
    bases = [save(folder / str(seed), kind, seed) for seed in (0, 1)]
    adapter = get_adapter(open_checkpoint(str(bases[0])), KINDS[kind])
    models = [adapter.model({}, {}) for _ in bases]
    for model, base in zip(models, bases, strict=True):
        checkpoint = open_checkpoint(str(base))
        state = {name: checkpoint.read(name).view(info.shape) for name, info in checkpoint.tensors.items()}
        load_weights(model, state, "base")
    return adapter, models, adapter.batch(TEXTS)


def scored(batch):
    """Returns the (row, place) of scored logits, and the tokens that follow, None for nothing."""
    prefix = "decoder_" if "decoder_input_ids" in batch else ""
    ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
    found = []
    for row, place in batch["loss_mask"].nonzero().tolist():
        is_last = place + 1 == int(mask[row].sum())
        found.append((row, place, None if is_last else int(ids[row, place + 1])))
    return found


def plain(adapter, model, batch):
    with torch.no_grad():
        logits = adapter.logits(model, batch).double().numpy()
    return log_softmax(np.stack([logits[row, place] for row, place, _ in scored(batch)]))


def mean_of_texts(values, batch):
    rows = np.array([row for row, _, _ in scored(batch)])
    return sum(np.mean(np.array(values)[rows == row]) for row in set(rows.tolist())) / len(TEXTS)


@pytest.fixture(params=[1, 50, 1 << 22])
def chunk(request, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", request.param)


def test_the_divergence_and_the_agreement_are_those_of_the_scored_tokens(case, chunk):
    adapter, (one, other), batch = case
    with torch.no_grad():
        expected, found = token_outputs(adapter, one, batch), token_outputs(adapter, other, batch)
        value, (same, count) = token_divergence(expected, found, batch), token_agreement(expected, found)
    p, q = plain(adapter, one, batch), plain(adapter, other, batch)
    assert len(found) == count == len(p)
    assert float(value) == pytest.approx(mean_of_texts((np.exp(p) * (p - q)).sum(-1), batch), rel=1e-4)
    assert same == int((p.argmax(-1) == q.argmax(-1)).sum()) < count


def test_the_loss_is_the_cross_entropy_of_the_tokens_that_follow(case, chunk):
    adapter, (one, _), batch = case
    with torch.no_grad():
        found = next_token_loss(token_outputs(adapter, one, batch), batch)
    logs = plain(adapter, one, batch)
    by_row = {row: [] for row in range(len(TEXTS))}
    for line, (row, _, following) in zip(logs, scored(batch), strict=True):
        by_row[row] += [] if following is None else [-line[following]]
    expected = sum(np.mean(each) for each in by_row.values() if each) / len(TEXTS)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_gradients_do_not_depend_on_the_chunks(case, monkeypatch):
    adapter, (one, other), batch = case
    with torch.no_grad():
        expected = token_outputs(adapter, one, batch)
    gradients = []
    for size in (1, 1 << 22):
        monkeypatch.setattr(module, "_CHUNK", size)
        other.zero_grad()
        calls = []
        head = other.get_output_embeddings().weight
        handle = head.register_post_accumulate_grad_hook(lambda leaf, calls=calls: calls.append(leaf))
        token_divergence(expected, token_outputs(adapter, other, batch), batch).backward()
        handle.remove()
        assert len(calls) == 1  # a chunk's gradient alone would be taken for the whole
        gradients.append(
            {name: each.grad.clone() for name, each in other.named_parameters() if each.grad is not None}
        )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=2e-5)


def test_no_logits_are_held_but_where_something_follows_the_head(case):
    adapter, (one, _), batch = case
    with torch.no_grad():
        found = token_outputs(adapter, one, batch)
    words = {"gemma2": 40}.get(one.config.model_type, WIDTH)
    assert found.states.shape == (int(batch["loss_mask"].sum()), words)
