"""Model adapters' batches and logits, compared with transformers alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.adapter_bases import ENCODER, IMAGE, TEXT, adapter_of, change_config, save_bases
from support.checkpoints import message
from support.tiny_models import (
    MAX_TOKENS,
    WIDTH,
    save_encoder_with_head,
    save_image_classifier,
    save_text_classifier,
    texts,
)

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.task_vectors.open_vector import open_finetuned
from flexswitch.merging.task_vectors.restore import restored_tensors


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return save_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def base(bases, tmp_path):
    """A copy of the text base that a test may change."""
    return shutil.copytree(bases["text"], tmp_path / "base")


def loaded_model(adapter, base, finetuned):
    """Returns the adapter's model of a fine-tune, with the weights of the base plus the task vector."""
    checkpoint = open_checkpoint(str(base))
    vector = open_finetuned(str(finetuned), checkpoint)
    model = adapter.model(vector.model.config, vector.extras)
    outputs = restored_tensors(checkpoint, vector, 1.0, torch.float32)
    state = {adapter.parameter_name(name): output.whole() for name, output in outputs.items()}
    load_weights(model, state, str(finetuned))
    assert not model.training
    assert vector.model.adapter is not None
    return vector.model.adapter, model


# --- hf-sequence-classification ---------------------------------------------------------------------------


def test_a_text_classifier_gives_the_same_logits_as_transformers(bases, tmp_path):
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


def test_texts_are_cut_at_the_models_positions_if_the_tokenizer_has_no_limit(base):
    change_config(base, "tokenizer_config.json", model_max_length="left out")
    assert adapter_of(TEXT, base).batch(["word1 " * 100])["input_ids"].shape == (1, 16)


def test_images_are_refused_as_texts(bases):
    adapter = adapter_of(TEXT, bases["text"])
    assert message(InputError, lambda: adapter.batch(np.zeros((2, 3, 8, 8)))) == (
        "the examples are an array of shape (2, 3, 8, 8), expected texts"
    )


# --- hf-encoder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["with bias", "without bias"])
def test_an_encoder_applies_the_stored_head_to_its_mean_pooled_tokens(bases, tmp_path, bias):
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


def test_an_encoder_without_a_head_is_refused_with_the_tensors_it_has(bases):
    adapter = adapter_of(ENCODER, bases["text"])
    extras = {"classifier.bias": TensorInfo("F32", (2,)), "classifier.weight": TensorInfo("F32", (2, WIDTH))}
    assert message(InputError, lambda: adapter.model({}, extras)) == (
        "adapter hf-encoder: the task has no 'head.weight' (it has: classifier.bias, classifier.weight)"
    )


# --- hf-image-classification ------------------------------------------------------------------------------


@pytest.fixture
def images(bases, tmp_path):
    """The image adapter of a base that a test may change, and the path of its preprocessor_config.json."""
    base = shutil.copytree(bases["image"], tmp_path / "images")
    return adapter_of(IMAGE, base), base / "preprocessor_config.json"


def test_an_image_classifier_gives_the_same_logits_as_transformers(bases, tmp_path):
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
def test_floating_point_images_are_used_unchanged(images, dtype):
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
def test_integer_images_are_rescaled_and_normalised_by_the_bases_settings(images, settings, expected):
    adapter, path = images
    path.write_text(json.dumps(settings))
    assert first_pixel(adapter) == pytest.approx(expected, abs=1e-6)


def test_integer_images_without_settings_are_refused(images):
    adapter, path = images
    path.unlink()
    assert message(InputError, lambda: first_pixel(adapter)) == (
        f"{path}: no such file; uint8 images are normalised by it; add it, or give float images"
    )


@pytest.mark.parametrize(
    ("settings", "mean", "deviation"),
    [
        ({}, None, None),
        ({"image_mean": [0.5], "image_std": [1, 1, 1]}, [0.5], [1, 1, 1]),
        ({"image_mean": 0.5, "image_std": 1}, 0.5, 1),
    ],
)
def test_settings_without_a_number_for_each_channel_are_refused(images, settings, mean, deviation):
    adapter, path = images
    path.write_text(json.dumps(settings))
    assert message(InputError, lambda: first_pixel(adapter)) == (
        f"{path}: has the image_mean {mean} and image_std {deviation}, expected one number for each of 3 channels"
    )


def test_settings_that_are_not_json_are_refused(images):
    adapter, path = images
    path.write_text("{")
    assert message(InputError, lambda: first_pixel(adapter)).startswith(f"{path}: is not JSON (")


@pytest.mark.parametrize(("inputs", "shape"), [(np.zeros((3, 8, 8)), "(3, 8, 8)"), (["a", "b"], "(2,)")])
def test_images_of_another_shape_are_refused(images, inputs, shape):
    assert message(InputError, lambda: images[0].batch(inputs)) == (
        f"images have the shape {shape}, expected (sample, channel, height, width)"
    )
