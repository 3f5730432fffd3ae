"""Restored directories: config, tokenizer, template and module folders describe the weights beside them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import message
from support.commands import Runner
from support.situations import (
    Checkpoints,
    assert_right,
    loaded,
    restored,
    restored_from_vector,
    text_answers,
)
from support.tiny_models import changed_state, save_text_base, write_tokenizer
from torch import Tensor

from flexswitch.codecs.errors import ArtifactError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.task_vectors.side_files import read_files

TEMPLATE = "{% for message in messages %}[USER] {{ message['content'] }} {% endfor %}[ASSISTANT]"
CHAT = [{"role": "user", "content": "word1 word2"}]


def causal(path: Path) -> Tensor:
    return text_answers(path, "AutoModelForCausalLM")


def save_language_model(folder: Path, **changes: Any) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.4, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 3, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**settings | changes)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def save_chat_model(
    base: Path, folder: Path, tokens: tuple[str, ...] = ("[USER]", "[ASSISTANT]", "[END]")
) -> Path:
    """Writes a fine-tune with added tokens, a chat template, and another token that ends an answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.chat_template, tokenizer.eos_token = TEMPLATE, tokens[-1]
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(40 + len(tokens), mean_resizing=False)
    model.load_state_dict(changed_state(model.state_dict(), 1, size=0.3))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(path: Path) -> list[int]:
    """Returns the tokens that a model answers a chat with, by its own tokenizer and settings."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    asked = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)
    answer = loaded(path, "AutoModelForCausalLM").generate(**asked, max_new_tokens=12, do_sample=False)
    found: list[int] = [*answer[0].tolist(), tokenizer.eos_token_id]
    return found


def test_a_chat_model_answers_with_its_own_tokens_template_and_end(tmp_path: Path) -> None:
    base = save_language_model(tmp_path / "base")
    task = save_chat_model(base, tmp_path / "task")
    case = Checkpoints(base, task, causal, {"on_resize": "extra"})
    path = assert_right(tmp_path, case)
    assert chat(path) == chat(task)
    for name in ("config.json", "generation_config.json"):
        assert (
            json.loads((path / name).read_text())["eos_token_id"]
            == json.loads((task / name).read_text())["eos_token_id"]
        )


def test_without_the_rows_of_added_tokens_the_base_s_tokenizer_and_ids_are_kept(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = save_language_model(tmp_path / "base")
    task = save_chat_model(base, tmp_path / "task")
    config = json.loads((task / "config.json").read_text())
    (task / "config.json").write_text(json.dumps(config | {"pad_token_id": 42}))
    for path in (
        restored(tmp_path / "one", base, task, on_resize="rows"),
        restored_from_vector(tmp_path / "two", base, task, on_resize="rows"),
    ):
        found = loaded(path, "AutoModelForCausalLM")
        assert (found.config.vocab_size, found.config.pad_token_id, found.config.eos_token_id) == (40, 0, 3)
        assert found.generation_config.eos_token_id == 3
        assert len(AutoTokenizer.from_pretrained(path)) == len(AutoTokenizer.from_pretrained(base))
        weights = load_file(task / "model.safetensors")["model.embed_tokens.weight"]
        torch.testing.assert_close(
            found.get_input_embeddings().weight.detach(), weights[:40], rtol=0, atol=1e-6
        )


def test_files_that_mean_the_same_are_not_carried(tmp_path: Path) -> None:
    base = save_language_model(tmp_path / "base")
    task = shutil.copytree(base, tmp_path / "task")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        document = json.loads((task / name).read_text())
        more = {} if name == "tokenizer.json" else {"transformers_version": "0.0", "name_or_path": "/home/me"}
        (task / name).write_text(json.dumps(document | more))
    compress(task, tmp_path / "task.fsw", base=base)
    assert not open_artifact(tmp_path / "task.fsw").header.extras


def test_only_the_entries_that_differ_are_carried_and_no_code(tmp_path: Path, flexswitch: Runner) -> None:
    base = save_language_model(tmp_path / "base")
    task = shutil.copytree(base, tmp_path / "task")
    tokenizer = json.loads((task / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (task / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((task / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}, "padding_side": "left"}
    (task / "tokenizer_config.json").write_text(json.dumps(settings))
    path = restored(tmp_path / "out", base, task)
    artifact = open_artifact(tmp_path / "out" / "task.fsw")
    assert list(artifact.header.extras) == ["entries/tokenizer.json", "entries/tokenizer_config.json"]
    assert sum(record.size for record in artifact.header.extras.values()) < 300
    shown = flexswitch("inspect", tmp_path / "out" / "task.fsw").out.replace("\n", " ")
    assert "files beside the weights: tokenizer.json, tokenizer_config.json" in shown
    assert json.loads((path / "tokenizer.json").read_text()) == tokenizer
    assert json.loads((path / "tokenizer_config.json").read_text()) == {
        key: value for key, value in settings.items() if key != "auto_map"
    }


HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "a path": ("file/../x.json", b"{}", "carries the file '../x.json', which no model needs"),
    "code": ("file/modeling.py", b"x", "carries the file 'modeling.py', which no model needs"),
    "a config": ("file/config.json", b"{}", "carries the file 'config.json', which no model needs"),
    "a hidden file": ("file/.jinja", b"x", "carries the file '.jinja', which no model needs"),
    "a map to code": ("file/tokenizer_config.json", b'{"auto_map": {}}', "its file 'tokenizer_config.json' names code to run"),
    "entries that are none": ("entries/tokenizer.json", b"[]", "its file 'tokenizer.json' is not JSON"),
    "a class": ("file/modules.json", b'[{"type": "os.system"}]', "its file 'modules.json' names the class 'os.system', which is code to run"),
    "an activation": ("file/2_Dense/config.json", b'{"activation_function": "own.Class"}', "its file '2_Dense/config.json' names the class 'own.Class', which is code to run"),
}  # fmt: skip


@pytest.mark.parametrize("situation", HOSTILE)
def test_files_that_may_run_code_or_lie_elsewhere_are_refused(situation: str) -> None:
    from flexswitch.codecs.format.records import RawTensor

    name, data, reason = HOSTILE[situation]
    found = message(
        ArtifactError,
        lambda: read_files("task.fsw", {name: len(data)}, lambda _: RawTensor("U8", (len(data),), data)),
    )
    assert found == f"task.fsw: {reason}"


def test_files_larger_than_a_task_carries_are_refused_before_they_are_read() -> None:
    found = message(ArtifactError, lambda: read_files("task.fsw", {"file/vocab.txt": 1 << 40}, pytest.fail))
    assert found.startswith("task.fsw: its files beside the weights have over 67,108,864 bytes in all")


# --- sentence-transformers --------------------------------------------------------------------------------


def embeddings(path: Path) -> Tensor:
    from sentence_transformers import SentenceTransformer

    found: Tensor = SentenceTransformer(str(path), device="cpu", local_files_only=True).encode(
        ["word1 word2", "birds3 tools1 word0"], convert_to_tensor=True
    )
    return found.cpu()


def save_sentence_model(base: Path, folder: Path, seed: int) -> Path:
    """Writes a BERT, a pooling and a dense layer as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    model = Transformer(str(base))
    torch.manual_seed(9)
    dense = Dense(16, 8, activation_function=torch.nn.Tanh())
    whole = SentenceTransformer(modules=[model, Pooling(16), dense], device="cpu")
    whole.load_state_dict(changed_state(whole.state_dict(), seed, size=0.2))
    whole.save(str(folder), create_model_card=False)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("plain", [False, True])
def test_a_sentence_model_keeps_its_modules_and_their_change(tmp_path: Path, plain: bool) -> None:
    bert = save_text_base(tmp_path / "bert")
    base = bert if plain else save_sentence_model(bert, tmp_path / "base", 1)
    task = save_sentence_model(bert, tmp_path / "task", 2)
    path = assert_right(tmp_path, Checkpoints(base, task, embeddings))
    assert (path / "2_Dense" / "model.safetensors").is_file()
    merge([tmp_path / "task.fsw"], path, base=base, task="task", overwrite=True)  # replaces what it wrote


# --- entries of config.json that only one side has ---------------------------------------------------------


def edit_config(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in drop}))


def changed_copy(base: Path, folder: Path, kind: str, **settings: Any) -> Path:
    """Writes a fine-tune of other settings, whose weights differ from the base's."""
    import transformers

    model = getattr(transformers, kind).from_pretrained(base, **settings)
    model.load_state_dict(changed_state(model.state_dict(), 3, size=0.2))
    model.save_pretrained(folder)
    return folder


def an_older_scaling_is_gone(folder: Path) -> Checkpoints:
    base = save_language_model(folder / "base")
    task = changed_copy(base, folder / "task", "LlamaForCausalLM")
    scaling = {"type": "linear", "factor": 4.0}
    edit_config(base, ("rope_parameters",), rope_theta=10000.0, rope_scaling=scaling)
    return Checkpoints(base, task, causal)


def a_default_is_not_written(folder: Path) -> Checkpoints:
    base = save_language_model(folder / "base")
    task = changed_copy(base, folder / "task", "LlamaForCausalLM")
    edit_config(base, hidden_act="relu", mlp_bias=False)
    edit_config(task, ("hidden_act", "mlp_bias"))
    return Checkpoints(base, task, causal)


def older_names_of_rotations(folder: Path) -> Checkpoints:
    base = save_language_model(folder / "base")
    task = changed_copy(base, folder / "task", "LlamaForCausalLM")
    edit_config(task, ("rope_parameters",), rope_theta=500.0, rope_scaling={"type": "linear", "factor": 4.0})
    return Checkpoints(base, task, causal)


ENTRIES = {
    "an older scaling is gone": an_older_scaling_is_gone,
    "a default is not written": a_default_is_not_written,
    "older names of rotations": older_names_of_rotations,
}


@pytest.mark.parametrize("situation", ENTRIES)
def test_entries_that_only_one_config_has_are_the_fine_tune_s(tmp_path: Path, situation: str) -> None:
    assert_right(tmp_path, ENTRIES[situation](tmp_path))


def test_the_rows_of_fewer_classes_keep_the_names_of_the_base_s(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(save_text_base(tmp_path / "bert"), num_labels=2)
    model.save_pretrained(tmp_path / "base")
    more = {"num_labels": 5, "ignore_mismatched_sizes": True}
    task = changed_copy(tmp_path / "base", tmp_path / "task", "BertForSequenceClassification", **more)
    path = restored(tmp_path / "out", tmp_path / "base", task, on_resize="rows")
    found = text_answers(path, "AutoModelForSequenceClassification")
    expected = text_answers(task, "AutoModelForSequenceClassification")[:, :2]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# --- dtypes -----------------------------------------------------------------------------------------------


def test_the_config_says_the_dtype_of_the_weights_at_any_depth(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    base = save_text_base(tmp_path / "base")
    AutoModel.from_pretrained(base).to(torch.bfloat16).save_pretrained(tmp_path / "task")
    config = json.loads((base / "config.json").read_text()) | {
        "torch_dtype": "float32",
        "text_config": {"dtype": "float32"},
    }
    (base / "config.json").write_text(json.dumps(config))
    plain = restored(tmp_path / "one", base, tmp_path / "task")
    assert AutoModel.from_pretrained(plain).dtype == torch.float32
    half = restored(tmp_path / "two", base, tmp_path / "task", dtype="bfloat16")
    written = json.loads((half / "config.json").read_text())
    assert (written["text_config"]["dtype"], AutoConfig.from_pretrained(half).dtype) == (
        "bfloat16",
        torch.bfloat16,
    )
