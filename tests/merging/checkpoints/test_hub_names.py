"""What is a hub id, and which files of a repository are fetched: decided by names alone."""

import pytest

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.hub_id import is_hub_id
from flexswitch.merging.checkpoints.hub import checkpoint_files, download_checkpoint


@pytest.mark.parametrize(
    "text",
    [
        "org/name",
        "org/name@v1.0",
        "o/n",
        "FacebookAI/roberta-base",
        "a_b/c.d-e",
        "org/name@refs/pr/1",
        "1/2@0a1b",
    ],
)
def test_a_hub_id_is_recognised(text: str) -> None:
    assert is_hub_id(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "name", "org/", "/name", "./name", "../name", "~/name", ".org/name", "org/.name", "org/name/"),
        *(
            "a/b/c",
            "org/na me",
            "org/na:me",
            "org/naïve",
            "org/name\n",
            "org\\name",
            "org/-name",
            "org/name-",
        ),
        *("org/a--b", "org/a..b", "org/name.git", "org/" + 97 * "n"),
        *("org/name@", "org/name@/v1", "org/name@v1/", "org/name@a..b", "org/name@a b", "org/name@a@b"),
        *("runs/model.safetensors", "runs/model.pt", "runs/task.fsw", "runs/model.bin@v1"),
    ],
)
def test_anything_else_is_not_a_hub_id(text: str) -> None:
    assert not is_hub_id(text)
    with pytest.raises(InputError) as caught:
        download_checkpoint(text)
    assert str(caught.value) == f"'{text}' is not a hub id: expected org/name or org/name@revision"


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "params.json"]),
        (["adapter_model.bin", "adapter_config.json"], ["adapter_model.bin", "adapter_config.json"]),
        (
            ["a.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json"],
            ["a.safetensors", "model.safetensors.index.json"],
        ),
        (["config.json", "model.onnx", "onnx/model.safetensors"], []),
        (
            ["modules.json", "model.safetensors", "1_Pooling/config.json", "onnx/model.onnx"],
            ["model.safetensors", "modules.json", "1_Pooling/config.json"],
        ),
        (
            ["modules.json", "model.safetensors", "2_Dense/model.safetensors"],
            ["model.safetensors", "modules.json", "2_Dense/model.safetensors"],
        ),
        (["model.safetensors", "1_Pooling/config.json"], ["model.safetensors"]),
    ],
)
def test_one_copy_of_the_weights_is_chosen(names: list[str], wanted: list[str]) -> None:
    assert checkpoint_files(names) == wanted
