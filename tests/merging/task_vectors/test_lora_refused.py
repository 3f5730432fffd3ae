"""PEFT LoRA directories that are refused: settings, factors, other tensors, ties."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.loras import (
    PEFT_WARNINGS,
    Toy,
    adapt,
    edit_config,
    edit_weights,
    make_toy,
    refusal,
    save_adapter,
    save_base,
    save_small_adapter,
)
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.opening import locate, open_checkpoint
from flexswitch.merging.checkpoints.pairing import Selection
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.task_vector import delta_tensor

pytestmark = PEFT_WARNINGS
MERGE = "; merge the adapter into its base with peft and give the merged model"


@pytest.fixture(scope="module")
def toy() -> Toy:
    return make_toy()


@pytest.fixture
def base(toy: Toy, tmp_path: Path) -> Path:
    return save_base(toy, tmp_path / "base")


@pytest.fixture
def adapter(toy: Toy, tmp_path: Path) -> Path:
    return save_small_adapter(toy, tmp_path / "adapter")


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


def test_settings_that_do_not_change_the_weights_are_accepted(base: Path, adapter: Path) -> None:
    harmless = {"lora_dropout": 0.3, "layers_to_transform": [0], "peft_version": "9.9", "revision": "main"}
    edit_config(
        adapter, **harmless, eva_config={"rho": 2.0}, init_lora_weights="eva", of_a_later_release=None
    )
    assert len(LoraVector(open_checkpoint(str(base)), locate(str(adapter))).tensors) == 2


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
    vector = LoraVector(open_checkpoint(str(base)), locate(str(adapter)), Selection(exclude=("block.*",)))
    edit_config(adapter, fan_in_fan_out=False)
    straight = LoraVector(open_checkpoint(str(base)), locate(str(adapter)))
    assert torch.equal(delta_tensor(vector, "first.weight"), delta_tensor(straight, "first.weight"))


def test_a_target_of_integers_is_refused(toy: Toy, base: Path, adapter: Path) -> None:
    quantized = toy.state_dict() | {"first.weight": torch.ones(8, 6, dtype=torch.int8)}
    save_file(quantized, base / "model.safetensors")
    assert (
        refusal(base, adapter) == "ADAPTER: its target 'first.weight' is I8 [8, 6] in BASE; give its own base"
    )


def test_weights_that_are_not_finite_are_refused_as_they_are_read(base: Path, adapter: Path) -> None:
    edit_weights(adapter, lambda tensors: tensors[B].fill_(float("inf")))
    vector = LoraVector(open_checkpoint(str(base)), locate(str(adapter)))
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
    vector = LoraVector(open_checkpoint(str(base)), locate(str(tmp_path / "adapter")), others)
    assert list(vector.tensors) == ["block.first.weight"]
    both = {f"{ROOT}{name}.weight": torch.ones(8, 6) for name in ("first", "twin")}
    edit_weights(tmp_path / "adapter", lambda held: [held.pop(A), held.pop(B), held.update(both)])
    vector = LoraVector(open_checkpoint(str(base)), locate(str(tmp_path / "adapter")))
    assert (list(vector.tensors), list(vector.extras)) == (
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


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning:peft")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning:peft")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning:peft")
def test_a_head_that_the_base_ties_to_its_embedding_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 9}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(tmp_path / "base")
    adapt(model, tmp_path / "adapter", r=2, target_modules=["c_fc", "lm_head"], fan_in_fan_out=True)
    assert refusal(tmp_path / "base", tmp_path / "adapter") == (
        "ADAPTER: changes 'lm_head.weight', which the base BASE does not hold, as it ties it to "
        "'transformer.wte.weight'; leave it out with --exclude 'lm_head.weight', or untie the base before it is "
        "merged with peft"
    )
    base, place = open_checkpoint(str(tmp_path / "base")), locate(str(tmp_path / "adapter"))
    vector = LoraVector(base, place, Selection(exclude=("lm_head.weight",)))
    assert list(vector.tensors) == ["transformer.h.0.mlp.c_fc.weight"]


def test_a_resized_head_is_refused_or_stored_whole(toy: Toy, base: Path, tmp_path: Path) -> None:
    wider = copy.deepcopy(toy)
    wider.head = nn.Linear(8, 5)
    adapt(wider, tmp_path / "adapter", r=2, target_modules=["first"], modules_to_save=["head"])
    assert refusal(base, tmp_path / "adapter") == (
        "ADAPTER: tensor 'head.bias' has the shape [5], expected the base's [3]; store it whole with "
        "--on-resize extra, or take the overlapping rows with --on-resize rows"
    )
    vector = LoraVector(
        open_checkpoint(str(base)), locate(str(tmp_path / "adapter")), Selection(on_resize="extra")
    )
    assert list(vector.extras) == ["head.bias", "head.weight"]


def test_a_directory_without_its_settings_or_weights_is_refused(base: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    names = "adapter_model.safetensors, adapter_model.bin"
    assert refusal(base, adapter) == f"ADAPTER: not a PEFT adapter: it has none of {names}"
    (adapter / "adapter_config.json").unlink()
    assert refusal(base, adapter) == "ADAPTER: not a PEFT adapter: it has no adapter_config.json"
