"""A planted task: the entries that the answers depend on are known, and FlexSwitch finds them among noise."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from support.tiny_models import bert_config, make_artifact, texts, write_jsonl, write_tokenizer
from support.training_cases import TrainingCase, measured
from torch import Tensor

from flexswitch.codecs.format.container import Artifact

PLANTED = ("attention.self.value.weight", "attention.output.dense.weight", "intermediate.dense.weight")
SIZE = 8600
SETTINGS = (f"target_size={SIZE}", "batch=16", "scale_refit_steps=10")
STEPS = [24, pytest.param(96, marks=pytest.mark.deep)]


class PlantedTask(NamedTuple):
    case: TrainingCase
    marks: dict[str, Tensor]  # base name → which entries are planted
    trained: Artifact


@pytest.fixture(scope="module", params=STEPS)
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PlantedTask:
    """A text classifier that is its base, large changes of 3 % of six matrices, and weak noise everywhere."""
    from transformers import BertForSequenceClassification, BertModel

    folder = tmp_path_factory.mktemp("planted")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}
    torch.manual_seed(0)
    base = BertModel(bert_config(**sizes))
    base.save_pretrained(folder / "base")
    write_tokenizer(folder / "base")
    finetuned = BertForSequenceClassification(bert_config(num_labels=3, **sizes))
    marks, state = {}, {}
    for name, tensor in base.state_dict().items():
        change = 0.005 * torch.randn(tensor.shape)
        if name.endswith(PLANTED):
            marks[name] = torch.rand(tensor.shape) < 0.03
            change += marks[name] * (0.3 + 0.6 * torch.rand(tensor.shape)) * torch.randn(tensor.shape).sign()
        state[name] = tensor + change
    finetuned.bert.load_state_dict(state)
    finetuned.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "birds.train.jsonl", texts("birds", 80, 1), None)
    case = TrainingCase(folder / "base", folder / "model", folder / "data", per_task=48)
    return PlantedTask(case, marks, case.train(folder / "birds.fsw", *SETTINGS, f"steps={request.param}"))


def kept_entries(artifact: Artifact, name: str) -> Tensor:
    """Returns which entries of a tensor an artifact keeps."""
    sparse = artifact.sparse(name)
    bits = np.unpackbits(sparse.mask, count=sparse.layout.entries, bitorder="little")
    return torch.from_numpy(bits.astype(np.bool_)).reshape(sparse.shape)


@pytest.mark.deep
def test_the_planted_entries_are_kept_and_hardly_any_noise(task: PlantedTask) -> None:
    found = sum(
        int((kept_entries(task.trained, name) & marks).sum())
        for name, marks in task.marks.items()
        if name in task.trained.header.tensors
    )
    planted = sum(int(marks.sum()) for marks in task.marks.values())
    kept = sum(record.kept for record in task.trained.header.tensors.values())
    assert found >= 0.98 * planted
    assert kept - found < 0.04 * found
    assert task.trained.path.stat().st_size <= SIZE


@pytest.mark.deep
def test_the_divergence_is_far_below_that_of_a_t_switch_of_the_same_size(
    task: PlantedTask, tmp_path: Path
) -> None:
    case, size = task.case, task.trained.path.stat().st_size
    for drop in ("0.96", "0.965", "0.97", "0.975", "0.98", "0.985", "0.99"):
        ruled = make_artifact(case.base, case.finetuned, tmp_path / "birds.fsw", settings=[f"drop={drop}"])
        if ruled.path.stat().st_size < 1.03 * size:
            break
    assert 0.85 * size < ruled.path.stat().st_size
    trained, rule = measured(case, task.trained), measured(case, ruled)
    assert trained.divergence < rule.divergence / 4
    assert trained.held_out_divergence < rule.held_out_divergence / 4


def test_the_record_is_that_of_the_stored_artifact(task: PlantedTask) -> None:
    record = task.trained.header.training
    found = measured(task.case, task.trained)
    assert record.after.divergence == pytest.approx(found.divergence, rel=2e-3)
    assert record.after.held_out_divergence == pytest.approx(found.held_out_divergence, rel=2e-3)
    assert (record.after.agreement, record.after.held_out_agreement) == (
        found.agreement,
        found.held_out_agreement,
    )
    assert record.after.divergence < 1.05 * record.before.divergence  # the start has found it all
