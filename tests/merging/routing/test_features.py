"""Features of examples against transformers alone, and features of the user's file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import message
from support.tiny_models import WIDTH, save_image_base, save_state, save_text_base, texts

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.examples import Examples
from flexswitch.merging.models.runner import Runner
from flexswitch.merging.routing.features import FileFeatures, feature_source
from flexswitch.merging.routing.index_options import IndexOptions
from flexswitch.merging.routing.indexing import index_zoo
from flexswitch.merging.routing.text_shape import text_shapes

CLASSIFIER = "hf-sequence-classification"
TEXTS = texts("birds", 90, seed=0)


@pytest.fixture(scope="module")
def text_base(tmp_path_factory):
    return save_text_base(tmp_path_factory.mktemp("text") / "base")


@pytest.fixture(scope="module")
def image_base(tmp_path_factory):
    return save_image_base(tmp_path_factory.mktemp("images") / "base")


def source_of(spec, base, adapter=CLASSIFIER):
    return feature_source(str(spec), Runner(get_adapter(open_checkpoint(str(base)), adapter)), {})


def from_file(path):
    return FileFeatures(path)


def indexed(**changes):
    """Indexes a missing zoo."""
    folder = Path("missing")
    return index_zoo(folder, "missing", folder, IndexOptions(**changes), False, lambda task: None)


def rows_of(source, inputs, rows=None):
    examples = Examples(inputs, None)
    rows = np.arange(len(examples)) if rows is None else np.array(rows, np.int64)
    return source.rows("birds", "train", examples, rows)


def plain_hidden_states(base, text):
    """Returns the embeddings' and each layer's output for one text without padding, by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(base).eval()
    tokens = AutoTokenizer.from_pretrained(base)(text, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens, output_hidden_states=True)


@pytest.mark.parametrize("spec", ["pooled", "layer:0", "layer:1", "layer:2"])
def test_features_are_the_mean_over_a_texts_own_tokens(text_base, spec):
    found = rows_of(source_of(spec, text_base), TEXTS[:8])
    assert (found.dtype, found.shape, found.device.type) == (torch.float32, (8, WIDTH), "cpu")
    for row, text in enumerate(TEXTS[:8]):
        output = plain_hidden_states(text_base, text)
        hidden = (
            output.last_hidden_state if spec == "pooled" else output.hidden_states[int(spec.split(":")[1])]
        )
        torch.testing.assert_close(found[row], hidden[0].mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", ["pooled", "layers:0+2"])
def test_the_texts_shapes_precede_a_models_features(text_base, spec):
    found = rows_of(source_of(f"shape+{spec}", text_base), TEXTS[:8], rows=[5, 1, 1])
    taken = [TEXTS[row] for row in (5, 1, 1)]
    torch.testing.assert_close(found[:, :WIDTH], text_shapes(taken, WIDTH), rtol=0, atol=0)
    plain = rows_of(source_of(spec, text_base), TEXTS[:8], rows=[5, 1, 1])
    torch.testing.assert_close(found[:, WIDTH:], plain, rtol=0, atol=0)


def test_the_shape_of_images_is_refused(image_base):
    source = source_of("shape+pooled", image_base, "hf-image-classification")
    images = np.zeros((2, 3, 8, 8), np.float32)
    assert message(InputError, lambda: rows_of(source, images)) == (
        "features 'shape+pooled': the examples are an array of shape (2, 3, 8, 8), expected texts"
    )


@pytest.mark.parametrize("spec", ["pooled", "layer:1"])
def test_features_of_images_are_the_mean_over_all_tokens(image_base, spec):
    from transformers import ViTModel

    images = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    found = rows_of(source_of(spec, image_base, "hf-image-classification"), images)
    model = ViTModel.from_pretrained(image_base, add_pooling_layer=False).eval()
    with torch.no_grad():
        output = model(torch.from_numpy(images), output_hidden_states=True)
    hidden = output.last_hidden_state if spec == "pooled" else output.hidden_states[1]
    torch.testing.assert_close(found, hidden.mean(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", ["pooled", "layer:1"])
def test_a_texts_features_do_not_depend_on_the_batch(text_base, spec):
    source = source_of(spec, text_base)
    together = rows_of(source, TEXTS)  # two batches
    alone = torch.cat([rows_of(source, TEXTS, [row]) for row in range(0, len(TEXTS), 9)])
    torch.testing.assert_close(together[::9], alone, rtol=0, atol=1e-5)


def test_features_are_in_the_order_of_the_requested_rows(text_base):
    source = source_of("pooled", text_base)
    rows = [7, 3, 3, 11]
    torch.testing.assert_close(rows_of(source, TEXTS, rows), rows_of(source, TEXTS)[rows], rtol=0, atol=1e-5)


def test_features_of_a_half_precision_base_are_computed_in_float32(text_base, tmp_path):
    import shutil

    half = shutil.copytree(text_base, tmp_path / "half")
    state = {name: tensor.half() for name, tensor in load_file(half / "model.safetensors").items()}
    save_state(half / "model.safetensors", state)
    found = rows_of(source_of("pooled", half), TEXTS[:4])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, rows_of(source_of("pooled", text_base), TEXTS[:4]), rtol=0, atol=0.02)


@pytest.mark.parametrize(("spec", "layers"), [("input", [0]), ("layers:2+0", [2, 0]), ("auto", [0, 1, 2])])
def test_features_of_several_layers_are_concatenated(text_base, spec, layers):
    source = source_of(spec, text_base)
    found = rows_of(source, TEXTS[:8])
    assert found.shape == (8, WIDTH * len(layers))
    for row, text in enumerate(TEXTS[:8]):
        states = plain_hidden_states(text_base, text).hidden_states
        expected = torch.cat([states[layer][0].mean(0) for layer in layers])
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)
    assert source.spec == {"auto": "layers:0+1+2"}.get(spec, spec)


@pytest.mark.parametrize("spec", ["pooled", "layers:0+1"])
def test_features_in_bfloat16_are_close_to_float32(text_base, spec):
    exact = source_of(spec, text_base)
    rough = replace(exact, dtype="bfloat16")
    found, expected = rows_of(rough, TEXTS[:8]), rows_of(exact, TEXTS[:8])
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.1


def test_a_text_without_tokens_has_the_features_zero(text_base):
    from flexswitch.merging.models.hidden_states import mean_pool

    hidden = torch.ones(2, 3, WIDTH)
    pooled = mean_pool(hidden, torch.tensor([[0, 0, 0], [1, 1, 0]]))
    assert pooled.tolist() == [[0.0] * WIDTH, [1.0] * WIDTH]


def test_the_refusal_of_a_missing_layer_lists_the_existing_ones(text_base):
    source = source_of("layer:3", text_base)
    assert message(UsageError, lambda: rows_of(source, TEXTS[:1])) == (
        "features 'layer:3': the base has layer:0 (embeddings) … layer:2"
    )


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ("poled", "; did you mean 'pooled'?"),
        ("layer", "; did you mean 'layer:N'?"),
        ("layer:", "; did you mean 'layer:N'?"),
        ("layer:-1", "; did you mean 'layer:N'?"),
        ("cls", ""),
    ],
)
def test_the_refusal_of_an_unknown_feature_spec_lists_the_known_ones(text_base, spec, nearest):
    assert message(UsageError, lambda: source_of(spec, text_base)) == (
        f"--features: no feature spec is named '{spec}'{nearest} (known: pooled, input, layer:N, layers:A+B, average:SPEC, auto, shape+SPEC, FILE.safetensors)"
    )


def test_features_on_an_unknown_device_are_refused_before_anything_is_read():
    assert message(UsageError, lambda: indexed(device="gpu")) == (
        "--device: no device is named 'gpu'; did you mean 'cpu'? (known: cpu, cuda)"
    )


def test_features_on_a_missing_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message(InputError, lambda: indexed(device="cuda")) == (
        "--device cuda: torch finds no CUDA device here; use --device cpu"
    )


# --- features from a file ---------------------------------------------------------------------------------

IN_FILE = {
    "birds.train": torch.arange(12.0).reshape(4, 3),
    "birds.test": torch.arange(6.0).reshape(2, 3).to(torch.float16),
    "cities.train": torch.zeros(4),
}


@pytest.fixture
def file(tmp_path):
    return save_state(tmp_path / "mine.safetensors", IN_FILE)


def test_features_are_read_from_a_file_by_task_and_split(file):
    source = from_file(file)
    assert source.spec == "file"
    found = source.rows("birds", "train", Examples(["a"] * 4, None), np.array([2, 0]))
    assert found.tolist() == [[6, 7, 8], [0, 1, 2]]
    found = source.rows("birds", "test", Examples(["a"] * 2, None), np.arange(2))
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_feature_file_needs_no_model(file):
    assert isinstance(from_file(file), FileFeatures)


def test_a_missing_feature_file_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    assert message(InputError, lambda: from_file(path)) == (
        f"{path}: no such file; expected features as tensors <task>.train and <task>.test"
    )


def test_a_feature_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"text")
    assert message(InputError, lambda: from_file(path)) == (
        f"{path}: not a safetensors file: 4 bytes, expected a header of at least 8"
    )


def test_a_file_without_a_tasks_features_is_refused(file):
    assert message(
        InputError, lambda: FileFeatures(file).rows("tools", "test", Examples(["a"], None), np.arange(1))
    ) == (f"{file}: has no tensor 'tools.test', expected [1, width]")


@pytest.mark.parametrize(("task", "shape"), [("birds", [4, 3]), ("cities", [4])])
def test_a_file_with_another_number_of_rows_than_examples_is_refused(file, task, shape):
    examples = Examples(["a"] * 5, None)
    assert message(InputError, lambda: FileFeatures(file).rows(task, "train", examples, np.arange(5))) == (
        f"{file}: tensor '{task}.train' has the shape {shape}, expected [5, width], a row for each example"
    )
