"""Model adapters against transformers alone, and what they say of bases that they can't run."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from checkpoints import message
from safetensors.torch import load_file
from tiny_models import (
    MAX_TOKENS,
    WIDTH,
    save_encoder_with_head,
    save_image_base,
    save_image_classifier,
    save_state,
    save_text_base,
    save_text_classifier,
    texts,
    write_tokenizer,
)
from torch import nn

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.architecture import ADAPTERS, detect_adapter
from flexswitch.merging.checkpoint import TensorInfo, open_checkpoint
from flexswitch.merging.evaluation.adapters import get_adapter
from flexswitch.merging.loading import load_weights, names_inside
from flexswitch.merging.open_vector import open_finetuned
from flexswitch.merging.task_vector import restored_tensors

TEXT, IMAGE, ENCODER, CAUSAL = ADAPTERS


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {"text": save_text_base(folder / "text"), "image": save_image_base(folder / "image")}


@pytest.fixture
def base(bases, tmp_path):
    """A copy of the text base that a test may change."""
    return shutil.copytree(bases["text"], tmp_path / "base")


def adapter_of(name, base, trusted=False):
    return get_adapter(name, open_checkpoint(str(base)), trusted)


def loaded_model(adapter, base, finetuned):
    """Returns a fine-tune's model as the adapter builds it, with the weights of base plus task vector."""
    checkpoint = open_checkpoint(str(base))
    vector = open_finetuned(str(finetuned), checkpoint)
    model = adapter.model(vector.model.config, vector.extras)
    outputs = restored_tensors(checkpoint, vector, 1.0, torch.float32)
    state = {adapter.parameter_name(name): output.whole() for name, output in outputs.items()}
    load_weights(model, state, str(finetuned))
    assert not model.training
    assert vector.model.adapter is not None
    return vector.model.adapter, model


def change_config(folder, file="config.json", **entries):
    path = folder / file
    settings = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in settings.items() if value != "left out"}))


# --- which adapter ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "extras", "adapter"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, ["classifier.weight"], TEXT),
        ({"architectures": ["ViTForImageClassification"]}, ["classifier.weight"], IMAGE),
        ({"architectures": ["BertForSequenceClassification"]}, ["head.weight"], TEXT),
        ({"architectures": ["BertModel"]}, ["head.bias", "head.weight"], ENCODER),
        ({}, ["head.weight"], ENCODER),
        ({"architectures": ["BertModel"]}, ["head.bias"], None),
        ({"architectures": ["LlamaForCausalLM"]}, [], CAUSAL),
        ({"architectures": ["GPT2LMHeadModel"]}, ["head.weight"], CAUSAL),
        ({"architectures": ["LlamaForCausalLM"]}, ["score.weight"], None),
        ({"architectures": ["LlamaForCausalLM"]}, ["model.classifier.dense.weight"], None),
        ({"architectures": ["LlamaForCausalLM"]}, ["model.rescored.weight"], CAUSAL),
        ({"architectures": ["GPT2Model"]}, [], None),
        ({"architectures": ["T5ForConditionalGeneration"]}, [], None),
        ({"architectures": ["BertForMaskedLM"]}, [], None),
        ({"architectures": None}, [], None),
        ({"architectures": "BertForSequenceClassification"}, [], None),
        ({"architectures": [None]}, [], None),
        ({}, [], None),
    ],
)
def test_the_adapter_is_told_from_the_architecture_or_the_head(config, extras, adapter):
    assert detect_adapter(config, extras) == adapter


def test_an_unknown_adapter_is_told_with_the_nearest(bases):
    assert message(UsageError, lambda: adapter_of("hf-sequence-clasification", bases["text"])) == (
        "no adapter is named 'hf-sequence-clasification'; did you mean 'hf-sequence-classification'? "
        "(known: hf-sequence-classification, hf-image-classification, hf-encoder, hf-causal-lm)"
    )


def test_no_adapter_at_all_is_told_with_the_known_ones(bases):
    assert message(UsageError, lambda: adapter_of(None, bases["text"])) == (
        "nothing says how the models are run; give --adapter "
        "(known: hf-sequence-classification, hf-image-classification, hf-encoder, hf-causal-lm)"
    )


FACTORY = """
class Mine:
    neighbours = 3

    def __init__(self, base):
        self.base = base

def make(base):
    return Mine(base)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `own_adapter` that python can import."""
    (tmp_path / "own_adapter.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_adapter", None)


def test_a_python_adapter_is_made_by_its_factory_where_the_user_names_it(bases, module):
    checkpoint = open_checkpoint(str(bases["text"]))
    adapter = get_adapter("python:own_adapter:make", checkpoint, trusted=True)
    assert (adapter.neighbours, adapter.base) == (3, checkpoint)


def test_code_that_a_zoo_names_is_not_even_imported(bases, module):
    assert message(UsageError, lambda: adapter_of("python:own_adapter:make", bases["text"])) == (
        "the zoo asks for the code 'python:own_adapter:make'; if you trust it, give it as --adapter"
    )
    assert "own_adapter" not in sys.modules


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("python:no_such_module:make", "No module named 'no_such_module'"),
        ("python:own_adapter:made", "module 'own_adapter' has no attribute 'made'"),
        ("python:own_adapter", "module 'own_adapter' has no attribute ''"),
        ("python:", "Empty module name"),
    ],
)
def test_a_factory_that_is_not_there_is_told(bases, module, name, reason):
    assert message(UsageError, lambda: adapter_of(name, bases["text"], trusted=True)) == (
        f"--adapter {name}: {reason}; expected python:package.module:factory"
    )


# --- hf-sequence-classification ---------------------------------------------------------------------------


def test_a_text_classifier_answers_as_transformers_does(bases, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    finetuned = save_text_classifier(bases["text"], tmp_path / "tuned", 3, seed=1)
    adapter = adapter_of(TEXT, bases["text"])
    detected, model = loaded_model(adapter, bases["text"], finetuned)
    assert (detected, adapter.neighbours) == (TEXT, 5)
    whole = AutoModelForSequenceClassification.from_pretrained(finetuned).eval()
    inputs = texts("birds", 6, seed=0)
    tokens = AutoTokenizer.from_pretrained(bases["text"])(
        inputs, padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        found = adapter.logits(model, adapter.batch(inputs))
        torch.testing.assert_close(found, whole(**tokens).logits, rtol=0, atol=1e-5)
    assert found.shape == (6, 3)


def test_texts_are_padded_to_the_longest_and_cut_at_the_tokenizers_limit(bases):
    adapter = adapter_of(TEXT, bases["text"])
    batch = adapter.batch(["word1", "word1 word2 word3"])
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert adapter.batch(["word1 " * 100])["input_ids"].shape == (1, MAX_TOKENS)


def test_texts_are_cut_at_the_models_positions_where_the_tokenizer_knows_no_limit(base):
    change_config(base, "tokenizer_config.json", model_max_length="left out")
    assert adapter_of(TEXT, base).batch(["word1 " * 100])["input_ids"].shape == (1, 16)


def test_images_are_no_texts(bases):
    adapter = adapter_of(TEXT, bases["text"])
    assert message(InputError, lambda: adapter.batch(np.zeros((2, 3, 8, 8)))) == (
        "the examples are an array of shape (2, 3, 8, 8), expected texts"
    )


def test_a_base_without_a_tokenizer_is_told(base):
    for path in base.glob("tokenizer*"):
        path.unlink()
    assert message(InputError, lambda: adapter_of(TEXT, base)) == (
        f"{base}: has no tokenizer; copy its tokenizer.json there"
    )


def test_a_tokenizer_that_does_not_load_is_told(base):
    (base / "tokenizer.json").write_text("{}")
    found = message(InputError, lambda: adapter_of(TEXT, base))
    assert found.startswith(f"{base}: its tokenizer does not load (")


def test_a_tokenizer_that_can_not_pad_is_told(base):
    change_config(base, "tokenizer_config.json", pad_token="left out")
    assert message(InputError, lambda: adapter_of(TEXT, base)) == (
        f"{base}: its tokenizer has no pad_token; name one in its tokenizer_config.json"
    )


def test_code_beside_a_base_is_never_run(base):
    trace = base / "trace"
    (base / "own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    automatic = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), "own.Own")
    change_config(base, auto_map=automatic)
    change_config(
        base, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}, tokenizer_class="Own"
    )
    adapter = adapter_of(TEXT, base)
    adapter.encoder()
    adapter.model({}, {})
    assert adapter.batch(["word1"])["input_ids"].tolist() == [[2, 5, 3]]
    assert not trace.exists()


# --- hf-encoder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["with bias", "without bias"])
def test_an_encoder_answers_by_its_mean_pooled_tokens_under_the_stored_head(bases, tmp_path, bias):
    from transformers import AutoTokenizer, BertModel

    finetuned = save_encoder_with_head(bases["text"], tmp_path / "tuned", 4, seed=1, bias=bias)
    adapter = adapter_of(ENCODER, bases["text"])
    detected, model = loaded_model(adapter, bases["text"], finetuned)
    assert (detected, adapter.neighbours) == (ENCODER, 5)
    inputs = texts("birds", 5, seed=0)
    with torch.no_grad():
        found = adapter.logits(model, adapter.batch(inputs))
    assert found.shape == (5, 4)
    plain = BertModel.from_pretrained(finetuned).eval()
    head = load_file(finetuned / "model.safetensors")
    tokenize = AutoTokenizer.from_pretrained(bases["text"])
    for row, text in enumerate(inputs):
        with torch.no_grad():
            hidden = plain(**tokenize(text, truncation=True, return_tensors="pt")).last_hidden_state
        expected = head["head.weight"] @ hidden[0].mean(0) + head.get("head.bias", torch.zeros(4))
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-4)


def test_an_encoder_without_a_head_is_told_with_what_it_has(bases):
    adapter = adapter_of(ENCODER, bases["text"])
    extras = {"classifier.bias": TensorInfo("F32", (2,)), "classifier.weight": TensorInfo("F32", (2, WIDTH))}
    assert message(InputError, lambda: adapter.model({}, extras)) == (
        "adapter hf-encoder: the task has no 'head.weight' (it has: classifier.bias, classifier.weight)"
    )


# --- hf-image-classification ------------------------------------------------------------------------------


@pytest.fixture
def images(bases, tmp_path):
    """The image adapter on a base that a test may change, and where its preprocessor_config.json lies."""
    base = shutil.copytree(bases["image"], tmp_path / "images")
    return adapter_of(IMAGE, base), base / "preprocessor_config.json"


def test_an_image_classifier_answers_as_transformers_does(bases, tmp_path):
    from transformers import AutoModelForImageClassification

    finetuned = save_image_classifier(bases["image"], tmp_path / "tuned", 3, seed=1)
    adapter = adapter_of(IMAGE, bases["image"])
    detected, model = loaded_model(adapter, bases["image"], finetuned)
    assert (detected, adapter.neighbours) == (IMAGE, 10)
    pixels = np.random.default_rng(0).normal(size=(4, 3, 8, 8))
    whole = AutoModelForImageClassification.from_pretrained(finetuned).eval()
    with torch.no_grad():
        found = adapter.logits(model, adapter.batch(pixels))
        expected = whole(torch.from_numpy(pixels).float()).logits
    assert found.shape == (4, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_images_are_taken_as_they_are(images, dtype):
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(dtype)
    batch = images[0].batch(pixels)
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].dtype == torch.float32
    np.testing.assert_array_equal(batch["pixel_values"], pixels.astype(np.float32))


def first_pixel(adapter, value=255):
    pixels = np.full((1, 3, 8, 8), value, np.uint8)
    return adapter.batch(pixels)["pixel_values"][0, :, 0, 0].tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"rescale_factor": 1 / 255, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
            [2.5, 2.0, 1.75],
        ),
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}, [2.5, 2.0, 1.75]),
        ({"do_normalize": False, "image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}, [1, 1, 1]),
        ({"do_rescale": False, "image_mean": [5, 55, 105], "image_std": [10, 20, 30]}, [25, 10, 5]),
        ({"do_rescale": False, "do_normalize": False}, [255, 255, 255]),
        ({"rescale_factor": 1 / 127.5, "do_normalize": False}, [2, 2, 2]),
    ],
)
def test_whole_numbered_images_are_rescaled_and_normalised_as_the_base_says(images, settings, expected):
    adapter, path = images
    path.write_text(json.dumps(settings))
    assert first_pixel(adapter) == pytest.approx(expected, abs=1e-6)


def test_whole_numbered_images_without_settings_are_told(images):
    adapter, path = images
    path.unlink()
    assert message(InputError, lambda: first_pixel(adapter)) == (
        f"{path}: missing; it says how uint8 images are normalised, or give float images"
    )


@pytest.mark.parametrize(
    ("settings", "mean", "deviation"),
    [
        ({}, None, None),
        ({"image_mean": [0.5], "image_std": [1, 1, 1]}, [0.5], [1, 1, 1]),
        ({"image_mean": 0.5, "image_std": 1}, 0.5, 1),
    ],
)
def test_settings_without_a_number_for_each_channel_are_told(images, settings, mean, deviation):
    adapter, path = images
    path.write_text(json.dumps(settings))
    assert message(InputError, lambda: first_pixel(adapter)) == (
        f"{path}: has the image_mean {mean} and image_std {deviation}, expected a number for each of 3 channels"
    )


def test_settings_that_are_no_json_are_told(images):
    adapter, path = images
    path.write_text("{")
    assert message(InputError, lambda: first_pixel(adapter)).startswith(f"{path}: is not JSON (")


@pytest.mark.parametrize(("inputs", "shape"), [(np.zeros((3, 8, 8)), "(3, 8, 8)"), (["a", "b"], "(2,)")])
def test_images_of_another_shape_are_told(images, inputs, shape):
    assert message(InputError, lambda: images[0].batch(inputs)) == (
        f"images have the shape {shape}, expected (sample, channel, height, width)"
    )


# --- bases that can't be run ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_base_without_a_config_is_told(base, name):
    (base / "config.json").unlink()
    for source in (base, base / "model.safetensors"):
        assert message(InputError, lambda source=source: adapter_of(name, source)) == (
            f"{source}: has no config.json with a 'model_type'; give a model directory"
        )


def test_a_model_type_that_transformers_does_not_know_is_told(base):
    import transformers

    change_config(base, model_type="bort")
    assert message(InputError, lambda: adapter_of(TEXT, base)) == (
        f"{base}: transformers {transformers.__version__} has no model type 'bort'; "
        "give --adapter python:package.module:factory"
    )


def test_a_base_of_another_family_is_told(bases):
    adapter = adapter_of(IMAGE, bases["text"])
    found = message(InputError, lambda: adapter.model({}, {}))
    assert found.startswith(
        f"{bases['text']}: transformers makes no AutoModelForImageClassification of its config.json ("
    )
    found = message(InputError, lambda: adapter_of(TEXT, bases["image"]))
    assert found.startswith(f"{bases['image']}: its tokenizer does not load (")


@pytest.mark.parametrize("entries", [{"hidden_size": 17}, {"hidden_act": "no such"}])
def test_a_config_that_makes_no_model_is_told(base, entries):
    adapter = adapter_of(TEXT, base)
    found = message(InputError, lambda: adapter.model(entries, {}))
    assert found.startswith(
        f"{base}: transformers makes no AutoModelForSequenceClassification of its config.json ("
    )


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (
            {"num_hidden_layers": 3},
            "lacks 'encoder.layer.2.attention.self.query.weight', which the model of its config.json has",
        ),
        (
            {"vocab_size": 41},
            "does not fit its config.json (size mismatch for embeddings.word_embeddings.weight: copying a "
            "param with shape torch.Size([40, 16]) from checkpoint, the shape in current model is "
            "torch.Size([41, 16]).)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_told(base, entries, reason):
    change_config(base, **entries)
    adapter = adapter_of(TEXT, base)
    assert message(InputError, adapter.encoder) == f"{base}: {reason}"


def test_running_models_without_transformers_says_what_to_install(bases, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert message(InputError, lambda: adapter_of(TEXT, bases["text"])) == (
        "running models takes transformers; pip install 'flexswitch[eval]'"
    )


# --- names of weights -------------------------------------------------------------------------------------


def nested_module():
    return nn.ModuleDict({"body": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})


@pytest.mark.parametrize(("given", "held"), [("", ""), ("model.", ""), ("", "model.")])
def test_a_prefix_on_either_side_is_found(given, held):
    module = nested_module()
    names = [name for name in module.state_dict() if name.startswith(("body", "norm"))]
    outer = nn.ModuleDict({held.rstrip("."): module}) if held else module
    state = {f"{given}{name}": torch.full_like(module.state_dict()[name], 7.0) for name in names}
    assert names_inside(outer, list(state)) == {f"{given}{name}": f"{held}{name}" for name in names}
    load_weights(outer, state | {"other.weight": torch.zeros(1)}, "there")
    assert all((tensor == 7).all() for tensor in module.state_dict().values())


def test_a_tensor_that_the_module_needs_is_named():
    module = nested_module()
    state = dict(module.state_dict())
    del state["norm.bias"]
    assert message(InputError, lambda: load_weights(module, state, "there")) == (
        "there: lacks 'norm.bias', which the model of its config.json has"
    )


def test_a_base_with_tied_tensors_loads_from_any_one_of_their_names(tmp_path):
    from transformers import BartConfig, BartModel

    torch.manual_seed(0)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=40, d_model=8, max_position_embeddings=16, **layers, **heads)
    model = BartModel(config)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert "encoder.embed_tokens.weight" not in load_file(tmp_path / "model.safetensors")
    found = adapter_of(TEXT, tmp_path).encoder()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_names_under_which_transformers_saves_lead_to_those_under_which_it_runs(bases, wrapped):
    from transformers import ViTModel

    model = ViTModel.from_pretrained(bases["image"], add_pooling_layer=False)
    saved = load_file(bases["image"] / "model.safetensors")
    module, prefix = (nn.ModuleDict({"encoder": model}), "encoder.") if wrapped else (model, "")
    found = names_inside(module, list(saved))
    assert set(found.values()) == {prefix + name for name in model.state_dict()}
    for name, inside in found.items():
        assert torch.equal(saved[name], module.state_dict()[inside])
    own = list(module.state_dict())
    assert names_inside(module, own) == {name: name for name in own}


def test_an_encoder_saved_in_half_precision_runs_in_float32(base):
    state = load_file(base / "model.safetensors")
    save_state(base / "model.safetensors", {name: tensor.bfloat16() for name, tensor in state.items()})
    change_config(base, dtype="bfloat16")
    adapter = adapter_of(TEXT, base)
    for module in (adapter.encoder(), adapter.model({"id2label": {"0": "a", "1": "b", "2": "c"}}, {})):
        assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
