"""FlexSwitch on every kind of model, and by every objective."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import tiny_language_models, tiny_models
from support.tiny_language_models import save_language_base, save_language_model
from support.tiny_models import (
    bert_config,
    plain_predictions,
    save_encoder_with_head,
    save_image_base,
    save_image_classifier,
    save_text_base,
    save_text_classifier,
    texts,
    write_jsonl,
)
from support.training_cases import Reports, TrainingCase, measured


@pytest.fixture(scope="module", autouse=True)
def _wider_models() -> Iterator[None]:
    """Makes the tiny models wide enough that most of an artifact's bytes are for entries."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (tiny_models, tiny_language_models):
            patch.setattr(module, "WIDTH", 64)
        yield


def image_case(folder: Path) -> TrainingCase:
    base = save_image_base(folder / "base")
    finetuned = save_image_classifier(base, folder / "model", 3, seed=1)
    pixels = np.random.default_rng(1).normal(size=(40, 3, 8, 8)).astype(np.float32)
    (folder / "data").mkdir()
    np.savez(folder / "data" / "birds.train.npz", x=pixels)
    return TrainingCase(base, finetuned, folder / "data")


def encoder_case(folder: Path) -> TrainingCase:
    base = save_text_base(folder / "base")
    finetuned = save_encoder_with_head(base, folder / "model", 3, seed=1)
    return with_texts(folder, base, finetuned)


def language_case(kind: str) -> Callable[[Path], TrainingCase]:
    def make(folder: Path) -> TrainingCase:
        base = save_language_base(folder / "base", kind)
        return with_texts(folder, base, save_language_model(base, folder / "model", seed=1, size=0.1))

    return make


def regression_case(folder: Path) -> TrainingCase:
    base = save_text_base(folder / "base")
    return with_texts(folder, base, save_text_classifier(base, folder / "model", classes=1, seed=1))


def lora_case(folder: Path) -> TrainingCase:
    from transformers import AutoModelForSequenceClassification

    base = save_text_base(folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base, config=bert_config(num_labels=2))
    adapted = get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value", "dense"])
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    adapted.save_pretrained(folder / "model")
    return replace(with_texts(folder, base, folder / "model"), adapter="hf-sequence-classification")


def with_texts(folder: Path, base: Path, finetuned: Path) -> TrainingCase:
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "birds.train.jsonl", texts("birds", 40, 1), None)
    return TrainingCase(base, finetuned, folder / "data")


CASES = {
    "image": image_case,
    "encoder": encoder_case,
    "gpt2": language_case("gpt2"),
    "llama": language_case("llama"),
    "regression": regression_case,
    "lora": lora_case,
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.deep
def test_every_kind_of_model_comes_nearer_to_the_fine_tuned_one(kind: str, tmp_path: Path) -> None:
    case = CASES[kind](tmp_path)
    found = case.train(
        tmp_path / "out" / "birds.fsw", f"steps={60 if kind == 'llama' else 24}", "target_size=6KB"
    )
    record = found.header.training
    assert record.after.divergence < record.before.divergence
    assert record.exemplars == 24
    assert found.path.stat().st_size <= 6000
    assert measured(case, found).divergence == pytest.approx(record.after.divergence, rel=5e-3)


@pytest.mark.deep
def test_the_objective_mse_brings_the_features_nearer(case: TrainingCase, tmp_path: Path) -> None:
    found = case.train(tmp_path / "birds.fsw", "objective=mse")
    record = found.header.training
    assert record.after.divergence < record.before.divergence
    assert record.after.agreement == 1
    assert measured(case, found, "mse").divergence == pytest.approx(record.after.divergence, rel=5e-3)


@pytest.mark.deep
def test_the_objective_task_lowers_the_loss_on_labels(case: TrainingCase, tmp_path: Path) -> None:
    reports, data = Reports(), tmp_path / "data"
    data.mkdir()
    inputs = texts("birds", 40, 1)
    write_jsonl(data / "birds.train.jsonl", inputs, plain_predictions(case.finetuned, case.base, inputs))
    labelled = replace(case, data=data)
    found = labelled.train(tmp_path / "birds.fsw", "objective=task", "steps=40", reports=reports)
    losses = [progress.loss for progress in reports.steps]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert found.header.method.settings["objective"] == "task"
