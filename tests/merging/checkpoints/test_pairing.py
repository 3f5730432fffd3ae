"""Which tensor of a fine-tuned checkpoint belongs to which of its base: docs/methods.md §1, rule by rule."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import (
    MemoryCheckpoint,
    State,
    assert_same_state,
    file_pair,
    memory_pair,
    message,
    save_model,
)
from support.pairings import BASE, refused, tuned

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.safetensors_file import RangeReader
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.pairing import common_prefix
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.model_changes import config_changes
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.task_vector import delta_tensor


def test_every_floating_tensor_with_a_dimension_is_paired() -> None:
    pair = memory_pair(BASE, tuned())
    assert list(pair.tensors) == list(BASE)
    assert pair.tensors["encoder.weight"] == TensorInfo("F32", (2, 2))
    assert (dict(pair.extras), pair.parameters, pair.notes) == ({}, 12, [])
    assert delta_tensor(pair, "encoder.weight").tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_a_delta_is_computed_in_float32_whatever_the_dtypes() -> None:
    pair = memory_pair(
        {"w": torch.tensor([1.0, 3.0], dtype=torch.bfloat16)},
        {"w": torch.tensor([1.0009765625, 2.0], dtype=torch.float16)},
    )
    assert pair.tensors["w"].dtype == "F16"
    assert delta_tensor(pair, "w").tolist() == [0.0009765625, -1.0]


def test_a_prefix_of_the_fine_tuned_names_is_found_and_noted() -> None:
    pair = memory_pair(BASE, {**tuned(prefix="bert."), "classifier.weight": torch.ones(3, 2)})
    assert list(pair.tensors) == list(BASE)
    assert list(pair.extras) == ["classifier.weight"]
    assert (pair.model.base_prefix, pair.model.prefix) == ("", "bert.")
    assert pair.notes == ["the fine-tuned names carry the prefix 'bert.'; the base's names are used"]
    assert sorted(restore(MemoryCheckpoint(BASE), pair)) == [
        "bert.encoder.bias",
        "bert.encoder.weight",
        "bert.words.weight",
        "classifier.weight",
    ]


def test_a_prefix_of_the_base_names_is_found_and_noted() -> None:
    base = {f"model.{name}": tensor for name, tensor in BASE.items()}
    pair = memory_pair(base, tuned())
    assert list(pair.tensors) == list(base)
    assert (pair.model.base_prefix, pair.model.prefix) == ("model.", "")
    assert pair.notes == ["the base's names carry the prefix 'model.'; they are used"]
    assert_same_state(restore(MemoryCheckpoint(base), pair), tuned())


def test_a_prefix_may_have_several_steps() -> None:
    assert common_prefix(["a.w", "b.w"], ["x.y.a.w", "x.y.b.w", "head.w"]) == ("", "x.y.")


def test_names_that_agree_need_no_prefix() -> None:
    assert common_prefix(["w", "layer.w"], ["w", "layer.w"]) == ("", "")
    assert common_prefix(["a"], ["b"]) == ("", "")
    assert common_prefix(["w"], ["w", "extra.w"]) == ("", "")
    assert common_prefix(["w", "extra.w"], ["w"]) == ("", "")


def test_the_prefix_that_most_names_carry_is_taken() -> None:
    found = common_prefix(["a.w", "b.w", "c.w"], ["one.a.w", "two.a.w", "two.b.w", "c.w"])
    assert found == ("", "two.")


def test_a_tensor_of_the_base_outside_its_prefix_is_missing_and_can_be_left_out() -> None:
    base = {f"model.{name}": tensor for name, tensor in BASE.items()} | {"head.weight": torch.ones(2)}
    assert refused(base, tuned()).endswith(
        "such as 'head.weight'; leave them out with --exclude 'head.weight'"
    )
    pair = memory_pair(base, tuned(), exclude=("head.weight",))
    assert_same_state(restore(MemoryCheckpoint(base), pair), tuned() | {"head.weight": torch.ones(2)})


def test_a_tensor_that_the_base_lacks_is_an_extra() -> None:
    head = {"classifier.bias": torch.ones(3).to(torch.bfloat16), "classifier.weight": torch.ones(3, 2)}
    pair = memory_pair(BASE, tuned() | head)
    assert dict(pair.extras) == {
        "classifier.bias": TensorInfo("BF16", (3,)),
        "classifier.weight": TensorInfo("F32", (3, 2)),
    }
    assert_same_state(restore(MemoryCheckpoint(BASE), pair), tuned() | head)


def test_a_missing_tensor_is_named_with_the_option_that_leaves_it_out() -> None:
    finetuned = tuned()
    del finetuned["words.weight"]
    assert refused(BASE, finetuned) == (
        "finetuned: lacks 1 tensors of the base base, such as 'words.weight'; "
        "leave them out with --exclude 'words.weight'"
    )
    pair = memory_pair(BASE, finetuned, exclude=("words.weight",))
    assert list(pair.tensors) == ["encoder.bias", "encoder.weight"]
    restored = restore(MemoryCheckpoint(BASE), pair)
    assert torch.equal(restored["words.weight"], BASE["words.weight"])


def test_the_suggested_patterns_leave_out_only_the_missing_tensors() -> None:
    pooler = {"vit.pooler.bias": torch.ones(2), "vit.pooler.weight": torch.ones(2, 2)}
    decoder = {"cls.bias": torch.ones(2), "cls.dense.weight": torch.ones(2, 2)}
    base = (
        {f"vit.{name}": tensor for name, tensor in BASE.items()}
        | pooler
        | decoder
        | {"vit.mask": torch.ones(1)}
    )
    finetuned = tuned({name: tensor for name, tensor in base.items() if name.startswith(("vit.e", "vit.w"))})
    assert refused(base, finetuned) == (
        "finetuned: lacks 5 tensors of the base base, such as 'cls.bias'; "
        "leave them out with --exclude 'cls.*' --exclude 'vit.mask' --exclude 'vit.pooler.*'"
    )
    pair = memory_pair(base, finetuned, exclude=("cls.*", "vit.mask", "vit.pooler.*"))
    assert list(pair.tensors) == sorted(finetuned)


def test_checkpoints_without_a_common_name_are_refused() -> None:
    assert refused({"a.w": torch.ones(2)}, {"b.v": torch.ones(2)}) == (
        "finetuned: shares no tensor name with the base base; give the base it was fine-tuned from"
    )


def test_a_model_of_another_architecture_is_refused_whatever_is_left_out() -> None:
    base = {
        "lm_head.weight": torch.ones(4, 2),
        "model.a.weight": torch.ones(3),
        "model.b.weight": torch.ones(5),
    }
    other = {
        "lm_head.weight": torch.ones(4, 2),
        "wpe.weight": torch.ones(6, 2),
        "wte.weight": torch.ones(7, 2),
    }
    for exclude in ((), ("model.*",)):
        assert refused(base, other, exclude=exclude, on_resize="extra") == (
            "finetuned: shares only 1 of its 3 tensors' names with the base base, which has 3; give the base that "
            "it was made from"
        )
    part = {"lm_head.weight": torch.zeros(4, 2)}
    assert list(memory_pair(base, part, exclude=("model.*",)).tensors) == ["lm_head.weight"]


def test_a_selection_of_nothing_is_refused() -> None:
    assert refused(BASE, tuned(), exclude=("*",)) == "finetuned: no tensor of the base base is selected"
    assert refused(BASE, tuned(), include=("x*",)) == "finetuned: no tensor of the base base is selected"


def test_globs_choose_the_tensors_by_the_names_of_the_base() -> None:
    finetuned = tuned(prefix="bert.")
    pair = memory_pair(BASE, finetuned, include=("encoder.*", "words*"), exclude=("*.bias",))
    assert list(pair.tensors) == ["encoder.weight", "words.weight"]
    assert (dict(pair.extras), pair.parameters) == ({}, 10)


def test_globs_leave_out_extras_by_their_own_names() -> None:
    finetuned = tuned() | {"optimizer.m": torch.ones(2), "head.w": torch.ones(2)}
    assert list(memory_pair(BASE, finetuned, exclude=("optimizer.*",)).extras) == ["head.w"]


def tied_state(shift: float = 0.0) -> State:
    shared = torch.arange(6.0).reshape(3, 2) + shift
    return {"embed.weight": shared, "head.weight": shared, "norm": torch.ones(2) + shift}


@pytest.mark.parametrize("alone", ["embed.weight", "head.weight"])
@pytest.mark.parametrize("tied_side", ["base", "finetuned"])
def test_a_tied_tensor_is_found_under_any_of_its_names(tmp_path: Path, alone: str, tied_side: str) -> None:
    states = {"base": tied_state(), "finetuned": tied_state(1)}
    single = {"base": "finetuned", "finetuned": "base"}[tied_side]
    del states[single][{"embed.weight": "head.weight", "head.weight": "embed.weight"}[alone]]
    save_model(tmp_path / tied_side, states[tied_side], kind="bin")
    save_model(tmp_path / single, states[single])
    pair = CheckpointPair(*(open_checkpoint(str(tmp_path / side)) for side in ("base", "finetuned")))
    name = "embed.weight" if tied_side == "base" else alone
    assert (list(pair.tensors), dict(pair.extras)) == ([name, "norm"], {})
    assert delta_tensor(pair, name).tolist() == [[1, 1]] * 3


def test_tied_tensors_on_both_sides_are_one_tensor(tmp_path: Path) -> None:
    folders = [save_model(tmp_path / str(n), tied_state(n), kind="bin") for n in (0, 1)]
    pair = CheckpointPair(*(open_checkpoint(str(folder)) for folder in folders))
    assert (list(pair.tensors), pair.parameters) == (["embed.weight", "norm"], 8)


def test_tensors_that_fine_tuning_untied_are_both_restored(tmp_path: Path) -> None:
    base = open_checkpoint(str(save_model(tmp_path / "base", tied_state(), kind="bin")))
    untied = tied_state(1) | {"head.weight": torch.randn(3, 2)}
    pair = CheckpointPair(base, open_checkpoint(str(save_model(tmp_path / "task", untied))))
    assert list(pair.extras) == ["head.weight"]
    assert_same_state(restore(base, pair), untied)


def test_tensors_that_fine_tuning_tied_remain_two_tensors(tmp_path: Path) -> None:
    untied = tied_state() | {"head.weight": torch.zeros(3, 2)}
    base = open_checkpoint(str(save_model(tmp_path / "base", untied)))
    pair = CheckpointPair(
        base, open_checkpoint(str(save_model(tmp_path / "task", tied_state(1), kind="bin")))
    )
    assert list(pair.tensors) == ["embed.weight", "head.weight", "norm"]
    assert_same_state(restore(base, pair), tied_state(1))


@pytest.mark.parametrize(
    ("finetuned", "problem"),
    [
        ({"other": torch.ones(2)}, "shares no tensor name"),
        ({"encoder.bias": torch.ones(2)}, "lacks 2 tensors"),
        (tuned() | {"encoder.bias": torch.ones(3)}, "has the shape [3]"),
        (tuned() | {"encoder.bias": torch.ones(2, dtype=torch.int8)}, "has the dtype I8"),
    ],
)
def test_names_shapes_and_dtypes_are_checked_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finetuned: State, problem: str
) -> None:
    def reading(*arguments: object) -> bytearray:
        raise AssertionError("a weight is read")

    monkeypatch.setattr(RangeReader, "read", reading)
    assert problem in message(InputError, lambda: file_pair(tmp_path, BASE, finetuned))
    assert list(file_pair(tmp_path, BASE, tuned()).tensors) == list(BASE)


def test_the_changes_of_a_config_are_recorded_and_its_provenance_is_not(tmp_path: Path) -> None:
    config = {"model_type": "bert", "layers": 2, "same": [1, {"a": 2.5}], "gone": 1}
    changed = {
        "architectures": ["BertForSequenceClassification"],
        "layers": 3,
        "model_type": "bert",
        "same": [1, {"a": 2.5}],
        "_name_or_path": "/home/me/bert",
        "transformers_version": "5.0.0",
        "_commit_hash": "abc",
    }
    base = open_checkpoint(str(save_model(tmp_path / "base", BASE, config)))
    pair = CheckpointPair(base, open_checkpoint(str(save_model(tmp_path / "task", tuned(), changed))))
    assert pair.model.config == {"architectures": ["BertForSequenceClassification"], "layers": 3}
    assert pair.model.adapter == "hf-sequence-classification"
    assert config_changes(config, config, set()) == {}
