"""Checkpoints with statistics and other buffers, with numbers that are not finite, and with several copies of weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import save_model
from support.situations import Checkpoints, loaded, restored, restored_from_vector
from support.tiny_models import changed_state
from torch import Tensor

from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.methods.registry import method_names

UNTRAINED = [name for name in method_names("compression") if name != "flexswitch"]


def image_answers(path: Path) -> Tensor:
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.inference_mode():
        answer: Tensor = loaded(path, "AutoModelForImageClassification")(images).logits
    return answer


def save_resnets(folder: Path) -> Checkpoints:
    """Writes two ResNets whose variances are small and differ much."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    model = ResNetForImageClassification(config)
    for seed, name in enumerate(("base", "task")):
        generator = torch.Generator().manual_seed(seed)
        state = changed_state(model.state_dict(), seed, size=0.02)
        for key in state:
            if key.endswith("running_var"):
                state[key] = torch.rand(state[key].shape, generator=generator) * 10.0 ** -(3 * (1 - seed))
        model.load_state_dict(state)
        model.save_pretrained(folder / name)
    return Checkpoints(folder / "base", folder / "task", image_answers)


@pytest.fixture(scope="module")
def resnets(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return save_resnets(tmp_path_factory.mktemp("resnets"))


@pytest.mark.parametrize("method", UNTRAINED)
def test_running_statistics_are_stored_exactly_by_every_method(
    tmp_path: Path, resnets: Checkpoints, method: str
) -> None:
    path = restored(tmp_path, resnets.base, resnets.finetuned, method)
    found, expected = (load_file(each / "model.safetensors") for each in (path, resnets.finetuned))
    statistics = [name for name in expected if "running_" in name or "num_batches" in name]
    assert len(statistics) > 10
    for name in statistics:
        assert torch.equal(found[name], expected[name]), name
    assert resnets.answers(path).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_entries_equal_on_both_sides_are_no_change_whatever_they_are(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base = {"w": torch.tensor([[1.0, float("inf"), float("-inf")], [float("nan"), -0.0, 3.0]]).to(dtype)}
    task = {"w": base["w"].clone()}
    task["w"][0, 0], task["w"][1, 2] = 1.5, 2.0
    for name, state in (("base", base), ("task", task)):
        save_file(state, tmp_path / f"{name}.safetensors")
    files = tmp_path / "base.safetensors", tmp_path / "task.safetensors"
    for path in (restored(tmp_path / "one", *files), restored_from_vector(tmp_path / "two", *files)):
        found = load_file(path / "model.safetensors")["w"]
        torch.testing.assert_close(found, task["w"], rtol=0, atol=0, equal_nan=True)


def test_a_single_file_counts_before_an_old_index_as_in_transformers(tmp_path: Path) -> None:
    folder = save_model(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(2)}, shards=2)
    save_model(tmp_path, {"a": torch.ones(2), "b": torch.ones(2)})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.read("a").tolist() == [1, 1]
    assert checkpoint.notes == [
        "model.safetensors is taken, and not model.safetensors.index.json beside it, as transformers does"
    ]


def test_an_index_that_names_the_single_file_is_no_second_copy(tmp_path: Path) -> None:
    folder = save_model(tmp_path, {"a": torch.ones(2)})
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_checkpoint(folder).notes == []


def test_a_folder_may_have_an_at_sign_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = {"w": torch.ones(2, 2)}
    save_model(Path("base"), state)
    for day in ("run@monday", "run@tuesday"):
        save_model(Path(day), changed_state(state, len(day)))
    merged = merge(["run@monday", "run@tuesday"], "out", base="base", method="average")
    assert merged.tasks == ["run@monday", "run@tuesday"]
