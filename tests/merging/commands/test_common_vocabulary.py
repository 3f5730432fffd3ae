"""`merge --config` with a tokenizer: rows of tokens are matched by text, as mergekit matches them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as torch_file
from support.checkpoints import message
from support.tiny_models import contents
from support.vocabularies import (
    EMBEDDING,
    HEAD,
    Floats,
    matched,
    save_models,
    texts_of,
    vocabulary,
    weights,
)

from flexswitch.codecs.errors import InputError
from flexswitch.merging.commands.merge_config import merge_config
from flexswitch.merging.commands.reporter import Silent

pytestmark = pytest.mark.deep
WEIGHTS = {"a": 0.7, "b": 0.5, "c": 0.2, "base": 1.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with models whose heads are their own, and others of which some are tied."""
    folder = tmp_path_factory.mktemp("vocabularies")
    save_models(folder / "untied")
    save_models(folder / "tied", "abc")
    save_models(folder / "mixed", "ac")
    return folder


@pytest.fixture(params=["untied", "tied", "mixed"])
def folder(made: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made / request.param)
    return made / request.param


@pytest.fixture
def untied(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made / "untied")
    return made / "untied"


class Notes(Silent):
    """Collects a command's notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def text_of(models: str, method: str, base: bool, tokenizer: str) -> str:
    lines = [f"- {{model: {name}, parameters: {{weight: {WEIGHTS[name]}}}}}" for name in models.split()]
    own = "base_model: base\n" if base else ""
    return f"models:\n{chr(10).join(lines)}\n{own}merge_method: {method}\ndtype: float32\n{tokenizer}\n"


def merge(text: str, out: Path, **options: Any) -> dict[str, Floats]:
    """Returns the merged weights, by tensor."""
    Path("merge.yaml").write_text(text)
    merge_config("merge.yaml", out, overwrite=True, **options)
    return weights(out)


def combined(method: str, rows: list[Floats], base: int | None, shares: list[float]) -> Floats:
    """Returns what a method makes of the models' rows; base: the number of the base."""
    if method == "linear":
        return sum(w * each for w, each in zip(shares, rows, strict=True)) / sum(shares)
    assert base is not None
    own = rows[base]
    return own + sum(
        w * (each - own) for number, (w, each) in enumerate(zip(shares, rows, strict=True)) if number != base
    )


def check(folder: Path, out: Path, method: str, names: list[str], base: str | None, **more: Any) -> None:
    """Compares embedding and head with those of the models' rows, matched by text."""
    found, order = weights(out), texts_of(out)
    models = [folder / name for name in names]
    config = json.loads((out / "config.json").read_text())
    rows, number = config["vocab_size"], None if base is None else names.index(base)
    for tensor in (EMBEDDING,) if config["tie_word_embeddings"] else (EMBEDDING, HEAD):
        own = matched(tensor, order, models, None if base is None else folder / base, rows=rows, **more)
        expected = combined(method, own, number, [WEIGHTS[name] for name in names])
        assert found[tensor].shape == expected.shape
        np.testing.assert_allclose(found[tensor], expected, atol=1e-6, err_msg=tensor)


@pytest.mark.parametrize("source", ["union", "base", "b"])
def test_rows_are_matched_by_the_text_of_tokens(folder: Path, tmp_path: Path, source: str) -> None:
    merge(text_of("a b", "task_arithmetic", True, f"tokenizer_source: {source}"), tmp_path / "out")
    check(folder, tmp_path / "out", "task_arithmetic", ["a", "b", "base"], "base")
    expected = {"base": [*texts_of(folder / "base")], "b": [*texts_of(folder / "b")]}
    expected["union"] = [*dict.fromkeys(expected["base"] + texts_of(folder / "a") + expected["b"])]
    assert set(texts_of(tmp_path / "out")) == set(expected[source])
    kept = "base" if source == "union" else source
    numbers = vocabulary(tmp_path / "out")
    assert all(numbers[token] == number for token, number in vocabulary(folder / kept).items())


def test_without_a_base_a_lacking_row_is_the_mean_of_the_others(folder: Path, tmp_path: Path) -> None:
    names = ["a", "b", "base"]
    merge(text_of("a b base", "linear", False, "tokenizer: {source: union}"), tmp_path / "out")
    check(folder, tmp_path / "out", "linear", names, None)
    merge(text_of("a b base", "linear", True, "tokenizer: {}"), tmp_path / "based")
    check(folder, tmp_path / "based", "linear", names, "base")


def test_rows_behind_the_tokens_are_their_mean(folder: Path, tmp_path: Path) -> None:
    settings = "tokenizer: {source: union, pad_to_multiple_of: 64}"
    merge(text_of("a b", "task_arithmetic", True, settings), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 128
    check(folder, tmp_path / "out", "task_arithmetic", ["a", "b", "base"], "base")


def test_tokens_may_have_rules_of_their_own(folder: Path, tmp_path: Path) -> None:
    settings = """
tokenizer:
  tokens:
    <tool>: {source: {kind: zero}, force: true}
    zebra: {source: b, force: true}
    <x>: {source: {kind: model_token, model: a, token: the}}
    bird: {source: {kind: model_token, model: base, token_id: 7}, force: true}
    the: {source: {kind: zero}}
    new one: {source: {kind: zero}}
    new two: {source: {kind: model_token, model: b, token: zebra}}
"""
    rules = {
        "<tool>": ("zero", True),
        "zebra": (folder / "b", True),
        "<x>": ((folder / "a", "the"), False),
        "bird": ((folder / "base", 7), True),
        "new one": ("zero", False),
        "new two": ((folder / "b", "zebra"), False),
    }
    merge(text_of("a b", "task_arithmetic", True, settings), tmp_path / "out")
    check(folder, tmp_path / "out", "task_arithmetic", ["a", "b", "base"], "base", rules=rules)
    assert {"new one", "new two"} <= {*texts_of(tmp_path / "out")}


def test_a_model_without_a_tokenizer_has_the_base_s_tokens(untied: Path, tmp_path: Path) -> None:
    shutil.copytree("c", "d", dirs_exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("base", name), "d")
    notes = Notes()
    text = text_of("a c", "task_arithmetic", True, "tokenizer_source: union")
    found = merge(text, tmp_path / "out", reporter=notes)
    expected = merge(text.replace("model: c,", "model: d,"), tmp_path / "expected")
    assert all(np.array_equal(found[name], each) for name, each in expected.items())
    assert notes.lines[0].endswith("c has no tokenizer; its rows are taken for those of base's tokens")


def test_the_merged_model_runs_and_its_tokenizer_splits_by_the_base_s_rules(
    folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = text_of("a b", "task_arithmetic", True, "tokenizer_source: union").replace("0.7", "0")
    merge(text.replace("0.5", "0"), tmp_path / "out")  # no task counts, so it is the base with more tokens
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer("the dog<tool> and the zebra", return_tensors="pt")
    assert "<tool>" in tokenizer.convert_ids_to_tokens(tokens["input_ids"][0])
    tokens = AutoTokenizer.from_pretrained("base")("the cat and", return_tensors="pt")
    with torch.inference_mode():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(**tokens).logits
        expected = AutoModelForCausalLM.from_pretrained("base")(**tokens).logits
    assert found.shape[2] == len(tokenizer) > expected.shape[2]
    own = len(texts_of(folder / "base"))
    torch.testing.assert_close(found[:, :, :own], expected[:, :, :own])


def test_the_bytes_are_the_same_whatever_the_threads_and_the_memory(untied: Path, tmp_path: Path) -> None:
    text = text_of("a b c", "ties", True, "tokenizer: {source: union, pad_to_multiple_of: 16}")
    for number, options in enumerate(({"jobs": 1}, {"jobs": 3, "memory": 1 << 20})):
        merge(text + "parameters: {density: 0.5}\n", tmp_path / str(number), **options)
    assert contents(tmp_path / "0") == contents(tmp_path / "1")


def test_tokens_keep_their_meaning_in_the_configs(untied: Path, tmp_path: Path) -> None:
    notes = Notes()
    merge(text_of("a b", "task_arithmetic", True, "tokenizer_source: b"), tmp_path / "out", reporter=notes)
    numbers = vocabulary(tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / "out" / name).read_text())
        assert (found["bos_token_id"], found["eos_token_id"]) == (numbers["<s>"], numbers["</s>"]) == (2, 1)
    assert "merge.yaml: tokens have other numbers in config.json: bos_token_id 0 is now 2" in notes.lines


def test_weights_of_16_bits_are_averaged_in_float32_where_that_is_asked_for(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_models(tmp_path, dtype=torch.bfloat16)
    text = text_of("a b", "linear", False, "tokenizer_source: union")
    order, half = ["a", "b"], "dtype: float32\n"
    merge(text, tmp_path / "out")
    for tensor in (EMBEDDING, HEAD):
        rows = matched(tensor, texts_of(tmp_path / "out"), [Path(name) for name in order], None)
        np.testing.assert_allclose(
            weights(tmp_path / "out")[tensor], combined("linear", rows, None, [0.7, 0.5]), atol=1e-6
        )
    merge(text.replace(half, ""), tmp_path / "half")
    found = torch_file(tmp_path / "half" / "model.safetensors")
    assert {each.dtype for each in found.values()} == {torch.bfloat16}


def test_a_stack_of_layers_has_its_ends_rows_by_the_common_tokens(untied: Path, tmp_path: Path) -> None:
    slices = "".join(f"- sources: [{{model: {name}, layer_range: [0, 1]}}]\n" for name in ("a", "b"))
    text = f"slices:\n{slices}merge_method: passthrough\ntokenizer_source: union\n"
    found = merge(text, tmp_path / "out")
    order = texts_of(tmp_path / "out")
    for tensor, model in ((EMBEDDING, "a"), (HEAD, "b")):
        (expected,) = matched(tensor, order, [untied / model], None)
        np.testing.assert_allclose(found[tensor], expected, atol=0)


def test_tokens_behind_the_model_s_rows_are_left_out(untied: Path, tmp_path: Path) -> None:
    """Of a tokenizer of byte pairs; so are the merges that make them."""
    from transformers import AutoTokenizer

    shutil.copytree("base", "short", dirs_exist_ok=True)
    config = json.loads(Path("short/config.json").read_text()) | {"vocab_size": 30}
    Path("short/config.json").write_text(json.dumps(config))
    state = load_file("short/model.safetensors")
    save_file(
        state | {name: state[name][:30].copy() for name in (EMBEDDING, HEAD)}, "short/model.safetensors"
    )
    text = text_of("a b", "task_arithmetic", True, "tokenizer_source: base").replace(
        "model: base", "model: short"
    )
    merge(text, tmp_path / "out")
    assert texts_of(tmp_path / "out") == texts_of(untied / "base")[:30]
    assert max(AutoTokenizer.from_pretrained(tmp_path / "out")("the cat sat on the mat")["input_ids"]) < 30


BAD = [
    ("tokenizer_source: union\ntokenizer: {source: base}", "expected one of tokenizer_source and tokenizer"),
    ("tokenizer_source: [a]", "tokenizer_source: ['a']: expected union, base or a model"),
    ("tokenizer: union", "tokenizer: 'union': expected source, tokens, pad_to_multiple_of"),
    ("tokenizer: {sources: union}", "tokenizer: sources is not handled; handled are source, tokens, pad_to"),
    ("tokenizer: {tokens: [a]}", "tokenizer: tokens: expected texts and their sources"),
    ("tokenizer: {tokens: {1: {source: a}}}", "tokenizer: tokens: expected texts and their sources"),
    ("tokenizer: {tokens: {the: a}}", "tokenizer: tokens: the: 'a': expected source, force"),
    ("tokenizer: {tokens: {the: {force: true}}}", "tokenizer: tokens: the: source: None: expected a model"),
    ("tokenizer: {tokens: {the: {source: a, force: 1}}}", "the: force: 1: expected true or false"),
    ("tokenizer: {tokens: {the: {source: {kind: mean}}}}", "source: {'kind': 'mean'}: expected a model"),
    ("tokenizer: {tokens: {the: {source: {kind: zero, model: a}}}}", "model is not handled; handled are kind"),
    ("tokenizer: {tokens: {the: {source: {kind: model_token, model: a}}}}", "expected model, and one of token"),
    ("tokenizer: {tokens: {the: {source: {kind: model_token, model: a, token: x, token_id: 1}}}}", "expected model, and one"),
    ("tokenizer: {tokens: {the: {source: {kind: model_token, model: a, token_id: true}}}}", "expected model, and one"),
    ("tokenizer: {tokens: {the: {source: aa, force: true}}}", "no model merged here is named 'aa'"),
    ("tokenizer: {tokens: {new: {source: a}}}", "the row of the token 'new' is to be that of 'new', which the model lacks"),
    ("tokenizer: {tokens: {the: {source: {kind: model_token, model: a, token_id: 99}, force: true}}}",
     "a: tensor 'lm_head.weight' has the shape [38, 8], expected [at least 100, 8]"),
    ("tokenizer: {pad_to_multiple_of: 0.5}", "pad_to_multiple_of: 0.5: expected a whole number from 1 to"),
    ("tokenizer: {pad_to_multiple_of: 9999999999}", "pad_to_multiple_of: 9999999999: expected a whole number"),
    ("tokenizer_source: nowhere", "nowhere: no such file or directory"),
    ("tokenizer_source: c", "c has no tokenizer, by whose tokens the models' rows are matched"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), BAD, ids=[each[0] for each in BAD])
def test_what_is_wrong_is_refused_by_name(untied: Path, tmp_path: Path, settings: str, expected: str) -> None:
    text = text_of("a b", "task_arithmetic", True, settings)
    assert expected in message(InputError, lambda: merge(text, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_matched_are_refused(untied: Path, tmp_path: Path) -> None:
    def refusal(text: str) -> str:
        found = message(InputError, lambda: merge(text, tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        return found

    text = text_of("a b", "task_arithmetic", True, "tokenizer_source: union")
    assert "c has no tokenizer, by whose tokens the models' rows are matched" in refusal(
        text.replace("base_model: base", "base_model: c")
    )
    save_file({EMBEDDING: np.zeros((4, 8), np.float32)}, "alone.safetensors")
    alone = text.replace("model: a,", "model: alone.safetensors,")
    assert "alone.safetensors: rows of tokens are matched in whole models with a config.json" in refusal(
        alone
    )
    shutil.copytree("b", "wide", dirs_exist_ok=True)
    save_file(
        {
            name: np.zeros((each.shape[0], 9), np.float32) if name in (EMBEDDING, HEAD) else each
            for name, each in load_file("b/model.safetensors").items()
        },
        "wide/model.safetensors",
    )
    assert "wide: tensor 'lm_head.weight' has the shape [57, 9]" in refusal(
        text.replace("model: b,", "model: wide,")
    )
    shutil.copytree("b", "odd", dirs_exist_ok=True)
    Path("odd/config.json").write_text(json.dumps({"model_type": "own"}))
    assert "odd: transformers makes no model of its config.json" in refusal(
        text.replace("model: b,", "model: odd,")
    )
