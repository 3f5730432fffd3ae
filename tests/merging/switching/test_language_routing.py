"""Language models: indexed by their prompts, routed by them, and generating under what they are routed to."""

import pytest
import torch
from support.tiny_language_models import language_toy

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.conversations import Chat, Completion
from flexswitch.merging.models.examples import read_examples, task_file
from flexswitch.merging.routing.index_options import IndexOptions
from flexswitch.merging.routing.indexing import index_zoo
from flexswitch.merging.routing.query_set import read_query_set
from flexswitch.merging.switching.switched_model import SwitchedModel

PROMPTS = {"birds": "birds1 birds2 word1", "tools": "tools3 word2 tools1", "cities": "cities1 cities5"}
KINDS = ("gpt2", *(pytest.param(kind, marks=pytest.mark.deep) for kind in ("llama", "t5")))


@pytest.fixture(scope="module", params=KINDS)
def toy(request, tmp_path_factory):
    """A zoo that is indexed with the means of its prompts' hidden states."""
    toy = language_toy(tmp_path_factory.mktemp("toys") / request.param, request.param)
    options = IndexOptions("layer:1", per_task=9, metric="euclidean", normalise="none")
    index_zoo(toy.zoo, str(toy.base), toy.data, options, False, lambda task: None)
    return toy


def module_of(toy):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(toy.base)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(toy.base).eval()


def prompt_of(text):
    if isinstance(text, Chat):
        return (
            "".join(f"[CLS] {role} {content} [SEP] " for role, content in text.messages[:-1])
            + "[CLS] assistant"
        )
    return text.question if isinstance(text, Completion) else text


def tokens_of(toy, text):
    """Returns what the model is asked, (token,): only a prompt that the answer follows has no end."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy.base)
    tokens = tokenizer(prompt_of(text), add_special_tokens=not isinstance(text, Chat))["input_ids"]
    return torch.tensor(
        tokens[:-1] if isinstance(text, Completion) and "t5" not in str(toy.base) else tokens
    )[:16]


def test_exemplars_are_the_means_of_the_prompts_hidden_states(toy):
    query_set = read_query_set(open_zoo(toy.zoo))
    module = module_of(toy)
    body = module.get_encoder() if module.config.is_encoder_decoder else module.base_model
    for number, task in enumerate(query_set.header.tasks):
        texts = read_examples(task_file(toy.data, task, "train"), False).inputs
        with torch.no_grad():
            expected = torch.stack(
                [
                    body(tokens_of(toy, text)[None], output_hidden_states=True).hidden_states[1][0].mean(0)
                    for text in texts
                ]
            )
        own = torch.from_numpy(query_set.points[query_set.task_ids == number])
        assert len(own) == 9
        distances = torch.cdist(own, expected).min(1).values
        assert float(distances.max()) < 1e-3 * float(expected.norm(dim=1).mean())


@pytest.mark.parametrize("engine", ["auto", "grouped"])
def test_a_prompt_is_generated_from_under_the_weights_that_it_is_routed_to(toy, engine):
    adapter = get_adapter(open_checkpoint(str(toy.base)), open_zoo(toy.zoo).record.adapter)
    model = SwitchedModel(module_of(toy), open_zoo(toy.zoo), engine=engine)
    batch = adapter.prompts([Completion(prompt, "") for prompt in PROMPTS.values()])
    weights = model.route(batch)
    assert len(weights.argmax(1).unique()) > 1
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(left_padded(batch), **options)[:, -4:]
    for row, task in enumerate(PROMPTS):
        alone = {
            name: part[row : row + 1, : int(batch["attention_mask"][row].sum())]
            for name, part in batch.items()
        }
        expected = restored(toy, model.tasks, weights[row]).generate(**alone, **options)
        assert found[row].tolist() == expected[0, -4:].tolist(), task


def restored(toy, tasks, weights):
    """Returns a module of the base and this sum of the tasks' deltas."""
    from flexswitch.merging.models.loading import load_weights
    from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
    from flexswitch.merging.task_vectors.task_vector import delta_tensor

    zoo, module, checkpoint = open_zoo(toy.zoo), module_of(toy), open_checkpoint(str(toy.base))
    state = {
        name: checkpoint.read(name).view(info.shape).clone() for name, info in checkpoint.tensors.items()
    }
    for task, weight in zip(tasks, weights.tolist(), strict=True):
        vector = ArtifactVector(zoo[task])
        for name in vector.tensors:
            state[name] += weight * delta_tensor(vector, name).view(state[name].shape)
    load_weights(module, state, "sum")
    return module


def left_padded(batch):
    """Returns a batch as generation wants it: each row's padding before its text."""
    places = batch["attention_mask"].argsort(dim=1, stable=True)
    return {name: tensor.gather(1, places) for name, tensor in batch.items()}


def test_padding_on_the_left_does_not_change_the_route(toy):
    adapter = get_adapter(open_checkpoint(str(toy.base)), open_zoo(toy.zoo).record.adapter)
    model = SwitchedModel(module_of(toy), open_zoo(toy.zoo))
    batch = adapter.prompts(list(PROMPTS.values()))
    assert 0 in batch["attention_mask"]
    torch.testing.assert_close(model.route(left_padded(batch)), model.route(batch))
