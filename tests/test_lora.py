"""PEFT LoRA directories: what they expand to against peft's own merge, and what is refused by name."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from flexswitch.codecs.errors import InputError
from flexswitch.merging import checkpoint_pair, lora
from flexswitch.merging.checkpoint import open_checkpoint
from flexswitch.merging.fingerprint import identify
from flexswitch.merging.lora import LoraVector
from flexswitch.merging.pairing import EVERYTHING, Selection
from flexswitch.merging.task_vector import delta_tensor, restore

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # peft asks transformers for it
    "ignore:fan_in_fan_out is set to:UserWarning:peft",
)
MERGE = "; merge the adapter into its base with peft and give the merged model"


class Toy(nn.Module):
    """One of each layer that peft adapts; it is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 8)
        self.block = nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Linear(8, 5, bias=False)})
        self.conv1 = nn.Conv1d(3, 4, 5)
        self.conv2 = nn.Conv2d(3, 4, (2, 3))
        self.point = nn.Conv2d(4, 6, 1)
        self.conv3 = nn.Conv3d(2, 3, (1, 2, 3))
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(8, 3)


def adapt(model: nn.Module, directory: Path, **settings: Any) -> dict[str, Tensor]:
    """Saves an adapter with random weights; returns the weights that peft merges it into."""
    return dict(save_adapter(model, directory, **settings).merge_and_unload().state_dict())


def save_adapter(model: nn.Module, directory: Path, **settings: Any) -> PeftModel:
    torch.manual_seed(1)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    adapted.save_pretrained(directory)
    return adapted


def check_merged(base: Path, adapter: Path, merged: Mapping[str, Tensor]) -> LoraVector:
    """Checks every tensor of the base against peft's merged one, and that units are those that changed."""
    checkpoint = open_checkpoint(str(base))
    vector = LoraVector(checkpoint, str(adapter))
    restored = restore(checkpoint, vector)
    for name, info in checkpoint.tensors.items():
        weights = checkpoint.read(name).reshape(info.shape)
        expected = merged[vector.model.finetuned_name(name)]
        delta = delta_tensor(vector, name) if name in vector.units else torch.zeros_like(weights)
        torch.testing.assert_close(delta, expected - weights, rtol=1e-5, atol=4e-6)
        torch.testing.assert_close(
            restored[vector.model.finetuned_name(name)], expected, rtol=1e-6, atol=1e-6
        )
        assert (name in vector.units) == (not torch.equal(expected, weights))
    for name in vector.extras:
        assert torch.equal(restored[name], merged[name])
    assert list(vector.units) == sorted(vector.units)
    return vector


@pytest.fixture(scope="module")
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def base(toy: Toy, tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    save_file(toy.state_dict(), tmp_path / "base" / "model.safetensors")
    return tmp_path / "base"


@pytest.fixture
def adapter(toy: Toy, tmp_path: Path) -> Path:
    """A LoRA of rank 2 on `first` (6 → 8) and `block.first` (8 → 8)."""
    adapt(toy, tmp_path / "adapter", r=2, target_modules=["first"])
    return tmp_path / "adapter"


def edit_config(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(adapter: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def refusal(base: Path, adapter: Path, selection: Selection = EVERYTHING) -> str:
    """Returns the one line an adapter is refused with, its paths written as BASE and ADAPTER."""
    with pytest.raises(InputError) as caught:
        LoraVector(open_checkpoint(str(base)), str(adapter), selection)
    message = str(caught.value).replace(str(base), "BASE").replace(str(adapter), "ADAPTER")
    assert "\n" not in message
    return message


SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": ["first", "second"], "r": 2, "lora_alpha": 5},
    "rank-stabilized": {"target_modules": ["first"], "r": 3, "use_rslora": True},
    "patterns": {
        "target_modules": ["first", "second"],
        "r": 4,
        "lora_alpha": 3,
        "rank_pattern": {"block.first": 1, "first": 2},
        "alpha_pattern": {"^first": 7, r"block\..*": 11},
    },
    "stabilized-pattern": {"target_modules": ["first"], "use_rslora": True, "rank_pattern": {"first": 5}},
    "convolutions": {"target_modules": ["conv1", "conv2", "point", "conv3"], "r": 2},
    "embedding": {"target_modules": ["words"], "r": 2, "lora_alpha": 3},
    "biases-of-targets": {"target_modules": ["first"], "bias": "lora_only"},
    "all-biases": {"target_modules": ["first"], "bias": "all", "modules_to_save": ["head", "norm"]},
    "mica": {"target_modules": ["second"], "init_lora_weights": "mica", "r": 2},
    "orthogonal": {"target_modules": ["second"], "init_lora_weights": "orthogonal", "r": 2},
    "gaussian": {"target_modules": ["second", "words"], "init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_lora_expands_to_what_peft_merges(
    settings: dict[str, Any], toy: Toy, base: Path, tmp_path: Path
) -> None:
    merged = adapt(toy, tmp_path / "adapter", **settings)
    check_merged(base, tmp_path / "adapter", merged)


def bert(kind: type[nn.Module], **settings: object) -> nn.Module:
    torch.manual_seed(2)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return kind(
        BertConfig(**sizes, intermediate_size=12, max_position_embeddings=9, num_labels=3, **settings)
    )


def test_gpt2_stores_its_weights_transposed(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=9, bos_token_id=0, eos_token_id=0
        )
    )
    model.save_pretrained(tmp_path / "base")
    merged = adapt(model, tmp_path / "adapter", r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    vector = check_merged(tmp_path / "base", tmp_path / "adapter", merged)
    assert vector.units["transformer.h.0.attn.c_proj.weight"].shape == (8, 8)  # square: the flag decides
    assert vector.units["transformer.h.0.attn.c_attn.weight"].shape == (8, 24)


def test_a_classifier_brings_its_head_and_its_biases(tmp_path: Path) -> None:
    model = bert(BertForSequenceClassification)
    model.save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["query", "word_embeddings"], "task_type": "SEQ_CLS", "bias": "lora_only"}
    merged = adapt(model, tmp_path / "adapter", **settings, r=2)
    vector = check_merged(tmp_path / "base", tmp_path / "adapter", merged)
    assert list(vector.units) == [
        "bert.embeddings.word_embeddings.weight",
        "bert.encoder.layer.0.attention.self.query.bias",
        "bert.encoder.layer.0.attention.self.query.weight",
        "classifier.bias",
        "classifier.weight",
    ]
    assert vector.model.adapter == "hf-sequence-classification"
    assert vector.model.config == {}
    assert not vector.extras


def test_a_base_without_the_model_prefix_is_found(tmp_path: Path) -> None:
    model = bert(BertForSequenceClassification)
    model.bert.save_pretrained(tmp_path / "base")
    merged = adapt(model, tmp_path / "adapter", r=2, target_modules=["query"], task_type="SEQ_CLS")
    vector = check_merged(tmp_path / "base", tmp_path / "adapter", merged)
    assert (vector.model.base_prefix, vector.model.prefix) == ("", "bert.")
    assert list(vector.units) == ["encoder.layer.0.attention.self.query.weight"]
    assert list(vector.extras) == ["classifier.bias", "classifier.weight"]
    assert len(vector.pairing.notes) == 1
    edit_config(tmp_path / "adapter", modules_to_save=None)  # as old releases of peft wrote it
    assert LoraVector(vector.base, str(tmp_path / "adapter")).extras == vector.extras


def test_an_adapter_without_the_model_prefix_of_the_base_is_found(tmp_path: Path) -> None:
    model = bert(BertForSequenceClassification)
    model.save_pretrained(tmp_path / "base")
    adapt(model.bert, tmp_path / "adapter", r=2, target_modules=["query"], modules_to_save=["pooler"])
    vector = LoraVector(open_checkpoint(str(tmp_path / "base")), str(tmp_path / "adapter"))
    assert (vector.model.base_prefix, vector.model.prefix) == ("bert.", "")
    assert list(vector.units) == [
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
    ]


def test_a_delta_is_summed_exactly_and_rounded_once(base: Path, adapter: Path) -> None:
    checkpoint = open_checkpoint(str(base))
    a = torch.tensor([[1 / 3] * 6, [-1 / 3] * 5 + [2.0**-30]])
    b = torch.tensor([[1.0, 1.0]] * 8)
    root = "base_model.model.first.lora_"
    edit_weights(adapter, lambda tensors: tensors.update({f"{root}A.weight": a, f"{root}B.weight": b}))
    edit_config(adapter, lora_alpha=0.2)
    vector = LoraVector(checkpoint, str(adapter))
    third = float(np.float32(1 / 3))
    expected = np.array([0, 0, 0, 0, 0, (third + 2.0**-30) * 0.1] * 8, np.float32)
    assert np.concatenate(list(vector.blocks("first.weight"))).tobytes() == expected.tobytes()


def test_a_unit_is_the_same_however_it_is_cut_and_on_however_many_threads(
    toy: Toy, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["words", "first", "second", "conv2", "conv3"]
    adapt(toy, tmp_path / "adapter", r=3, target_modules=names, modules_to_save=["head"])
    vector = LoraVector(open_checkpoint(str(base)), str(tmp_path / "adapter"))
    threads = torch.get_num_threads()
    seen = []
    try:
        for count, block, tile in ((1, 1 << 20, 1 << 15), (2, 1 << 20, 5), (1, 7, 1 << 15), (2, 1, 11)):
            torch.set_num_threads(count)
            monkeypatch.setattr(lora, "BLOCK_ENTRIES", block)
            monkeypatch.setattr(checkpoint_pair, "BLOCK_ENTRIES", block)
            monkeypatch.setattr(lora, "_TILE_ENTRIES", tile)
            blocks = {unit: list(vector.blocks(unit)) for unit in vector.units}
            assert all(len(part) == block for parts in blocks.values() for part in parts[:-1])
            seen.append({unit: np.concatenate(parts).tobytes() for unit, parts in blocks.items()})
    finally:
        torch.set_num_threads(threads)
    assert seen[0] == seen[1] == seen[2] == seen[3]


def test_whole_tensors_are_exact_and_targets_need_no_correction(toy: Toy, base: Path, tmp_path: Path) -> None:
    adapt(toy, tmp_path / "adapter", r=2, target_modules=["second"], modules_to_save=["head"])
    saved = torch.tensor([[1e-9, 3e7] * 4] * 3)
    path = "base_model.model.head.weight"
    edit_weights(tmp_path / "adapter", lambda tensors: tensors.update({path: saved}))
    checkpoint = open_checkpoint(str(base))
    vector = LoraVector(checkpoint, str(tmp_path / "adapter"))
    assert len(vector.exact("head.weight")[0])
    assert not len(vector.exact("block.second.weight")[0])
    assert torch.equal(restore(checkpoint, vector)["head.weight"], saved)


def test_a_vector_knows_its_base_and_counts_all_of_its_units(toy: Toy, base: Path, adapter: Path) -> None:
    checkpoint = open_checkpoint(str(base))
    vector = LoraVector(checkpoint, str(adapter), Selection(exclude=("words.*",)))
    assert vector.source == str(adapter)
    assert vector.identity() == identify(checkpoint)
    assert vector.parameters == sum(parameter.numel() for parameter in toy.parameters()) - 11 * 6
    assert list(vector.units) == ["block.first.weight", "first.weight"]
    assert vector.units["first.weight"].dtype == "F32"


def test_a_selection_takes_units_by_the_names_of_the_base(toy: Toy, base: Path, tmp_path: Path) -> None:
    adapt(toy, tmp_path / "adapter", r=2, target_modules=["first", "second"], modules_to_save=["head"])
    checkpoint = open_checkpoint(str(base))
    chosen = LoraVector(checkpoint, str(tmp_path / "adapter"), Selection(("block.*",), ("*.second.*",)))
    assert list(chosen.units) == ["block.first.weight"]
    assert chosen.parameters == 64 + 8
    nothing = refusal(base, tmp_path / "adapter", Selection(exclude=("*",)))
    assert nothing == "ADAPTER: no tensor of the base BASE is selected"


def test_a_head_that_the_base_lacks_is_an_extra_unless_it_is_excluded(
    toy: Toy, base: Path, tmp_path: Path
) -> None:
    wider = copy.deepcopy(toy)
    wider.added = nn.Linear(8, 2)
    merged = adapt(wider, tmp_path / "adapter", r=2, target_modules=["first"], modules_to_save=["added"])
    checkpoint = open_checkpoint(str(base))
    vector = LoraVector(checkpoint, str(tmp_path / "adapter"))
    assert list(vector.extras) == ["added.bias", "added.weight"]
    assert vector.extra("added.weight").data == merged["added.weight"].numpy().tobytes()
    assert not LoraVector(checkpoint, str(tmp_path / "adapter"), Selection(exclude=("added.*",))).extras


def test_a_resized_head_is_refused_or_stored_whole(toy: Toy, base: Path, tmp_path: Path) -> None:
    wider = copy.deepcopy(toy)
    wider.head = nn.Linear(8, 5)
    adapt(wider, tmp_path / "adapter", r=2, target_modules=["first"], modules_to_save=["head"])
    assert refusal(base, tmp_path / "adapter") == (
        "ADAPTER: tensor 'head.bias' has the shape [5], expected the base's [3]; store it whole with "
        "--on-resize extra, or take the overlapping rows with --on-resize rows"
    )
    vector = LoraVector(open_checkpoint(str(base)), str(tmp_path / "adapter"), Selection(on_resize="extra"))
    assert list(vector.extras) == ["head.bias", "head.weight"]


def test_an_embedding_that_peft_saved_with_its_weight_is_the_sum_of_both(
    toy: Toy, base: Path, tmp_path: Path
) -> None:
    merged = adapt(toy, tmp_path / "adapter", r=2, target_modules=["words"])
    saved = toy.words.weight.detach().clone()
    name = "base_model.model.words.base_layer.weight"  # written for 'embed_tokens' and 'lm_head'
    edit_weights(tmp_path / "adapter", lambda tensors: tensors.update({name: saved}))
    check_merged(base, tmp_path / "adapter", merged)
    edit_weights(tmp_path / "adapter", lambda tensors: tensors.update({name: saved + 1}))
    check_merged(base, tmp_path / "adapter", merged | {"words.weight": merged["words.weight"] + 1})


def test_an_adapter_of_torch_save_is_read_through_weights_only(base: Path, adapter: Path) -> None:
    checkpoint = open_checkpoint(str(base))
    expected = delta_tensor(LoraVector(checkpoint, str(adapter)), "first.weight")
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    assert torch.equal(delta_tensor(LoraVector(checkpoint, str(adapter)), "first.weight"), expected)
    torch.save({"run": print}, adapter / "adapter_model.bin")
    assert refusal(base, adapter).startswith("ADAPTER/adapter_model.bin: ")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("peft_type", "LOHA", "\"LOHA\", expected 'LORA'"),
        ("peft_type", None, "null, expected 'LORA'"),
        ("use_dora", True, "true, which is not handled"),
        ("lora_bias", True, "true, which is not handled"),
        ("use_qalora", True, "true, which is not handled"),
        ("target_parameters", ["experts.up"], '["experts.up"], which is not handled'),
        ("layer_replication", [[0, 2], [1, 3]], "[[0, 2], [1, 3]], which is not handled"),
        ("trainable_token_indices", [3], "[3], which is not handled"),
        ("alora_invocation_tokens", [3], "[3], which is not handled"),
        ("megatron_config", {"tp": 2}, '{"tp": 2}, which is not handled'),
        ("use_bdlora", {"nblocks": 2}, '{"nblocks": 2}, which is not handled'),
        ("kasa_config", {"beta": 1.0}, '{"beta": 1.0}, which is not handled'),
        ("velora_config", {"scale": 1.0}, '{"scale": 1.0}, which is not handled'),
        ("monteclora_config", {"n": 2}, '{"n": 2}, which is not handled'),
        ("arrow_config", {"top_k": 3}, '{"top_k": 3}, which is not handled'),
        ("corda_config", {"a": 1}, '{"a": 1}, which is not handled'),
        ("lora_ga_config", {"scale": "unit"}, '{"scale": "unit"}, which is not handled'),
        ("loftq_config", {"loftq_bits": 4}, '{"loftq_bits": 4}, which is not handled'),
        ("of_a_later_release", "twice", '"twice", which is not handled'),
        ("init_lora_weights", "pissa_niter_16", '"pissa_niter_16"'),
        ("init_lora_weights", "olora", '"olora"'),
        ("init_lora_weights", "corda", '"corda"'),
        ("init_lora_weights", "loftq", '"loftq"'),
        ("init_lora_weights", "lora_ga", '"lora_ga"'),
        ("bias", "some", "\"some\", expected 'none', 'all' or 'lora_only'"),
        ("r", 0, "0, expected greater than 0"),
        ("r", True, "true, expected a valid integer"),
        ("r", 10**40, "1" + "0" * 40 + ", expected less than 2147483648"),
        ("lora_alpha", "8", '"8", expected a valid number'),
        ("lora_alpha", float("nan"), "NaN, expected a finite number"),
        ("rank_pattern", {"first": 0}, '{"first": 0}, expected greater than 0'),
        ("fan_in_fan_out", "no", '"no", expected a valid boolean'),
        ("modules_to_save", "head", '"head", expected a valid list'),
    ],
)
def test_a_setting_that_is_not_handled_is_refused_by_name(
    key: str, value: object, problem: str, base: Path, adapter: Path
) -> None:
    edit_config(adapter, **{key: value})
    if key == "init_lora_weights":
        problem += ", expected True, False, 'eva', 'gaussian', 'mica' or 'orthogonal'"
    assert refusal(base, adapter) == f"ADAPTER: adapter_config.json has '{key}': {problem}{MERGE}"


def test_a_pattern_that_is_no_regular_expression_is_refused(base: Path, adapter: Path) -> None:
    edit_config(adapter, alpha_pattern={"fi(rst": 3})
    assert refusal(base, adapter).startswith(
        "ADAPTER: adapter_config.json has 'alpha_pattern': {\"fi(rst\": 3}, expected regular expressions; "
        "'fi(rst' is none (missing ), unterminated subpattern at position"
    )


def test_settings_that_do_not_change_the_weights_are_let_through(base: Path, adapter: Path) -> None:
    harmless = {"lora_dropout": 0.3, "layers_to_transform": [0], "peft_version": "9.9", "revision": "main"}
    edit_config(
        adapter, **harmless, eva_config={"rho": 2.0}, init_lora_weights="eva", of_a_later_release=None
    )
    assert len(LoraVector(open_checkpoint(str(base)), str(adapter)).units) == 2


ROOT = "base_model.model."
A, B = f"{ROOT}first.lora_A.weight", f"{ROOT}first.lora_B.weight"
UNKNOWN = f" is not known as a part of a LoRA on this base{MERGE}"


def missing(side: str) -> str:
    return f"its target 'first.weight' has lora_{side}, expected lora_A and lora_B; save the adapter again"


def misshapen(name: str, found: list[int], expected: list[int]) -> str:
    return f"tensor '{name}' has the shape {found}, expected {expected}; give its own base"


def move(target: str) -> Callable[[dict[str, Tensor]], object]:
    """Returns what gives another target a copy of the factors of `first`."""
    return lambda held: held.update({name.replace("first", target): held[name].clone() for name in (A, B)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop(B), missing("A")),
        (lambda held: held.pop(A), missing("B")),
        (lambda held: held.update({A: torch.ones(2, 7)}), misshapen(A, [2, 7], [2, 6])),
        (lambda held: held.update({B: torch.ones(8, 3)}), misshapen(B, [8, 3], [8, 2])),
        (lambda held: held.update({A: torch.ones(3, 6), B: torch.ones(8, 3)}), misshapen(A, [3, 6], [2, 6])),
        (move("gone"), "its target 'gone.weight' is missing in BASE; give its own base"),
        (move("norm"), "its target 'norm.weight' is F32 [6] in BASE; give its own base"),
    ],
)
def test_factors_that_do_not_fit_the_base_are_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, base: Path, adapter: Path
) -> None:
    edit_weights(adapter, change)
    assert refusal(base, adapter) == f"ADAPTER: {message}"


@pytest.mark.parametrize(
    "name",
    [
        f"{ROOT}first.lora_magnitude_vector",
        f"{ROOT}first.lora_B.bias",
        f"{ROOT}first.lora_diag",
        f"{ROOT}words.token_adapter.trainable_tokens_delta",
        f"{ROOT}head.modules_to_save.weight",
        f"{ROOT}gone.weight",
        "first.weight",
        "first.lora_A.weight",
    ],
)
def test_a_tensor_that_no_lora_has_is_refused(name: str, base: Path, adapter: Path) -> None:
    edit_weights(adapter, lambda tensors: tensors.update({name: torch.ones(8)}))
    assert refusal(base, adapter) == f"ADAPTER: tensor '{name}'{UNKNOWN}"


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1:UserWarning")
def test_a_convolution_in_groups_is_refused(toy: Toy, base: Path, tmp_path: Path) -> None:
    save_adapter(toy, tmp_path / "adapter", r=2, target_modules=["grouped"])
    assert refusal(base, tmp_path / "adapter") == (
        "ADAPTER: tensor 'base_model.model.grouped.lora_A.weight' has the shape [2, 4, 3, 3], "
        "expected [2, 2, 3, 3]; give its own base"
    )


def test_a_square_weight_is_refused_where_the_flag_is_known_to_be_wrong(base: Path, adapter: Path) -> None:
    edit_config(adapter, fan_in_fan_out=True)  # `first` is (8, 6), so its factors tell that it isn't so
    assert refusal(base, adapter) == (
        "ADAPTER: the 'fan_in_fan_out' of adapter_config.json does not hold for all targets, and the square "
        f"'block.first.weight' shows none{MERGE}"
    )
    vector = LoraVector(open_checkpoint(str(base)), str(adapter), Selection(exclude=("block.*",)))
    edit_config(adapter, fan_in_fan_out=False)
    straight = LoraVector(open_checkpoint(str(base)), str(adapter))
    assert torch.equal(delta_tensor(vector, "first.weight"), delta_tensor(straight, "first.weight"))


def test_a_target_with_whole_numbers_is_refused(toy: Toy, base: Path, adapter: Path) -> None:
    quantized = toy.state_dict() | {"first.weight": torch.ones(8, 6, dtype=torch.int8)}
    save_file(quantized, base / "model.safetensors")
    assert (
        refusal(base, adapter) == "ADAPTER: its target 'first.weight' is I8 [8, 6] in BASE; give its own base"
    )


def test_weights_that_are_not_finite_are_refused_as_they_are_read(base: Path, adapter: Path) -> None:
    edit_weights(adapter, lambda tensors: tensors[B].fill_(float("inf")))
    vector = LoraVector(open_checkpoint(str(base)), str(adapter))
    with pytest.raises(
        InputError, match=r"the delta of tensor 'first\.weight' is not finite near entry 0; the"
    ):
        list(vector.blocks("first.weight"))


def test_a_change_to_one_of_two_tied_tensors_is_refused(toy: Toy, base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").unlink()
    state = dict(toy.state_dict())
    torch.save(state | {"twin.weight": state["first.weight"]}, base / "pytorch_model.bin")
    adapt(toy, tmp_path / "adapter", r=2, target_modules=["first"])
    assert refusal(base, tmp_path / "adapter") == (
        "ADAPTER: changes 'first.weight' alone, which the base BASE ties to twin.weight; leave it out with "
        "--exclude 'first.weight', or untie the base before it is merged with peft"
    )
    others = Selection(exclude=("first.weight",))
    vector = LoraVector(open_checkpoint(str(base)), str(tmp_path / "adapter"), others)
    assert list(vector.units) == ["block.first.weight"]
    both = {f"{ROOT}{name}.weight": torch.ones(8, 6) for name in ("first", "twin")}
    edit_weights(tmp_path / "adapter", lambda held: [held.pop(A), held.pop(B), held.update(both)])
    vector = LoraVector(open_checkpoint(str(base)), str(tmp_path / "adapter"))
    assert (list(vector.units), list(vector.extras)) == (
        ["block.first.weight", "first.weight"],
        ["twin.weight"],
    )


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning:peft")
def test_an_embedding_that_the_head_of_a_language_model_shares_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(4)
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 9}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(tmp_path / "base")
    adapt(model, tmp_path / "adapter", r=2, target_modules=["wte"])
    assert refusal(tmp_path / "base", tmp_path / "adapter") == (
        "ADAPTER: changes 'transformer.wte.weight' alone, which the base BASE ties to the model's head; "
        "leave it out with --exclude 'transformer.wte.weight', or untie the base before it is merged with "
        "peft"
    )


def test_a_directory_without_its_settings_or_weights_is_refused(base: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    names = "adapter_model.safetensors, adapter_model.bin"
    assert refusal(base, adapter) == f"ADAPTER: not a PEFT adapter: it has none of {names}"
    (adapter / "adapter_config.json").unlink()
    assert refusal(base, adapter) == "ADAPTER: not a PEFT adapter: it has no adapter_config.json"
