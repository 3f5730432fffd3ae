"""Trainings whose model does not fit in `--memory`: the same file, from weights that are not held."""

import re
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import Runner
from support.families import FAMILIES, Family, save_family
from support.tiny_models import bert_config, write_tokenizer
from support.training_cases import Reports, TrainingCase, text_case

from flexswitch.codecs.format.container import open_artifact
from flexswitch.merging.models.streamed_linear import StreamedLinear

SHORT = ("target_size=20KB", "steps=3", "scale_refit_steps=1", "effort=fast", "batch=16")
BRIEF = SHORT[1:]
LITTLE = 1  # bytes of memory
# An encoder, an encoder-decoder, fused experts with a head, and layers that are given parts of a tensor.
KINDS = ("regression", "encoder-decoder, T5", "mixture of experts, Mixtral", "detection, YOLOS")
_DECODER = next(family for family in FAMILIES if family.name == "causal language model")
_JAMBA = {
    "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False, "attn_layer_period": 2,
    "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4,
    "mamba_dt_rank": 4,
}  # fmt: skip
ODD = (
    replace(
        _DECODER,
        name="weights used outside of their layer",
        model="JambaForCausalLM",
        config={name: value for name, value in _DECODER.config.items() if name != "head_dim"} | _JAMBA,
    ),
    replace(
        FAMILIES[0],
        name="layers used more than once",
        model="AlbertForSequenceClassification",
        base="AlbertModel",
        config=FAMILIES[0].config | {"embedding_size": 16},
    ),
    replace(
        FAMILIES[0],
        name="some layers used more than once",
        model="DebertaV2ForSequenceClassification",
        base="DebertaV2Model",
        config=FAMILIES[0].config
        | {"relative_attention": True, "share_att_key": True, "pos_att_type": ["c2p", "p2c"]},
    ),
)


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of entries of the weights that streamed layers have read."""
    found: list[int] = []
    forward = StreamedLinear.forward

    def counting(self: StreamedLinear, states: Any) -> Any:
        found.append(self.weight.numel())
        return forward(self, states)

    monkeypatch.setattr(StreamedLinear, "forward", counting)
    return found


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=[] if family.name == KINDS[0] else pytest.mark.deep)
        for family in (*FAMILIES, *ODD)
        if family.name in KINDS or family in ODD
    ],
)
def test_the_file_does_not_depend_on_the_memory(family: Family, tmp_path: Path, uses: list[int]) -> None:
    paths = save_family(family, tmp_path)
    case = TrainingCase(paths["base"], paths["birds"], paths["data"])
    held = case.train(tmp_path / "held" / "birds.fsw", *SHORT, jobs=2)
    assert not uses
    reports = Reports()
    streamed = case.train(tmp_path / "streamed" / "birds.fsw", *SHORT, reports=reports, memory=LITTLE)
    assert uses
    assert any("more than --memory allows" in note for note in reports.notes)
    assert streamed.path.read_bytes() == held.path.read_bytes()


@pytest.mark.deep
def test_entries_are_trained_beside_singular_vectors_whatever_the_memory(
    tmp_path: Path, uses: list[int]
) -> None:
    case = text_case(tmp_path)
    move_along_one_direction(case.base, case.finetuned)
    held = case.train(tmp_path / "held" / "birds.fsw", *BRIEF, jobs=2, base=True)
    streamed = case.train(tmp_path / "streamed" / "birds.fsw", *BRIEF, memory=LITTLE, base=True)
    assert uses
    assert streamed.path.read_bytes() == held.path.read_bytes()
    assert held.path.stat().st_size <= 7_000
    found = held.header.tensors.values()
    both = [record for record in found if record.rank is None and any(part.rank for part in record.more)]
    assert both
    sparse = case.train(tmp_path / "sparse" / "birds.fsw", *BRIEF, "form=sparse", base=True)
    assert not any(part.rank for record in sparse.header.tensors.values() for part in (record, *record.more))
    assert held.header.training is not None
    assert sparse.header.training is not None
    # Progress counts the vectors too.
    told = held.header.training.curve[-1][2] * held.header.parameters
    stored = sum(part.size for record in found for part in record.parts)
    assert 8 * stored <= told <= 8 * held.path.stat().st_size  # with their records


def move_along_one_direction(base: Path, finetuned: Path) -> None:
    """Makes the change of each matrix one of rank 1 with a little noise."""
    before, generator = load_file(base / "model.safetensors"), torch.Generator().manual_seed(5)
    after, moved = load_file(finetuned / "model.safetensors"), 0
    for name, weights in before.items():
        own = next((each for each in after if each.endswith(name)), None)
        if own is not None and weights.dim() == 2 and after[own].shape == weights.shape:
            left, right = (torch.randn(side, generator=generator) for side in weights.shape)
            noise = torch.randn(weights.shape, generator=generator)
            after[own] = weights + 0.05 * torch.outer(left, right) + 0.005 * noise
            moved += 1
    assert moved > 8
    save_file(after, finetuned / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "given",
    [("granularity=rows", "precision=bfloat16", "shards=3"), ("objective=mse",), ("lambda=0.1",)],
    ids=str,
)
@pytest.mark.deep
def test_so_it_is_with_other_settings(
    given: tuple[str, ...], case: TrainingCase, tmp_path: Path, uses: list[int]
) -> None:
    held = case.train(tmp_path / "held" / "birds.fsw", *SHORT, *given)
    streamed = case.train(tmp_path / "streamed" / "birds.fsw", *SHORT, *given, memory=LITTLE, jobs=2)
    assert bool(uses) == ("objective=mse" not in given)  # features are those of the adapter's own encoder
    assert streamed.path.read_bytes() == held.path.read_bytes()


@pytest.mark.deep
def test_a_head_of_another_size_than_the_bases_is_trained_with_as_it_is_stored(
    case: TrainingCase, tmp_path: Path, flexswitch: Runner, uses: list[int]
) -> None:
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    base, birds = (BertForSequenceClassification(bert_config(num_labels=classes)) for classes in (2, 5))
    moved = {name: each + 0.05 * torch.randn(each.shape) for name, each in base.bert.state_dict().items()}
    birds.bert.load_state_dict(moved)
    for model, name in ((base, "base"), (birds, "birds")):
        model.save_pretrained(tmp_path / name)
        write_tokenizer(tmp_path / name)
    found = []
    for memory in ("1GB", "10KB"):
        output = tmp_path / f"{memory}.fsw"
        run = flexswitch(
            "compress", tmp_path / "birds", "--base", tmp_path / "base", "--on-resize", "extra", "--exemplars",
            case.data, "--target-size", "20KB", "--extras", "int8", "--set", "steps=3", "--set",
            "min_exemplars=8", "--name", "birds", "-o", output, "--memory", memory,
        )  # fmt: skip
        assert run.status == 0
        assert bool(uses) == (memory == "10KB")
        found.append(output.read_bytes())
    assert found[0] == found[1]


def test_the_command_streams_what_decayed_too_and_names_the_memory_that_holds_it(
    case: TrainingCase, tmp_path: Path, flexswitch: Runner, uses: list[int]
) -> None:
    finetuned = copytree(case.finetuned, tmp_path / "birds")
    state = load_file(case.finetuned / "model.safetensors")
    weights = {name: 0.3 * weight if weight.dim() > 1 else weight for name, weight in state.items()}
    save_file(weights, finetuned / "model.safetensors", {"format": "pt"})

    def compressed(name: str, memory: str) -> tuple[bytes, str]:
        found = flexswitch(
            "compress", finetuned, "--base", case.base, "--exemplars", case.data, "--target-size", "20KB",
            "--set", "steps=3", "--set", "scale_refit_steps=1", "--set", "min_exemplars=8",
            "--name", "birds", "-o", tmp_path / name, "--memory", memory,
        )  # fmt: skip
        assert found.status == 0
        return (tmp_path / name).read_bytes(), found.err

    streamed, note = compressed("streamed.fsw", "100KB")
    assert uses
    tensors = open_artifact(tmp_path / "streamed.fsw").header.tensors
    assert any(record.base_factor for record in tensors.values())
    uses.clear()
    advice = re.search(r"--memory (\S+) gives the same file", note)
    assert advice is not None
    held, silence = compressed("held.fsw", advice[1])
    assert not uses
    assert "--memory" not in silence
    assert held == streamed
