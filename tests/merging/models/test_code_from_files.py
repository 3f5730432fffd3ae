"""No code that a model's files name is run or fetched, and nobody is asked about it on the terminal."""

import ast
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from support.artifact_files import damage
from support.tiny_models import Toy

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.model_config import known_changes, model_entries, written_changes
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.running_names import running_model
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.models.adapters import get_adapter

ROOT = Path(__file__).resolve().parents[3]
PRODUCT = [
    path for room in ("api", "cli", "codecs", "merging", "recipes") for path in (ROOT / room).rglob("*.py")
]
AUTO_MAP = {
    "AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    "AutoModelForSequenceClassification": "org/evil--evil.Evil", "AutoModelForCausalLM": "evil.Evil",
}  # fmt: skip
HEAD = {"head.weight": TensorInfo("F32", (2, 16))}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_all_that_loads_by_transformers_refuses_code_and_downloads() -> None:
    found = []
    for path in PRODUCT:
        for call in calls(path):
            if isinstance(call.func, ast.Attribute) and call.func.attr in ("from_pretrained", "from_config"):
                given = {each.arg: getattr(each.value, "value", None) for each in call.keywords}
                assert given.get("trust_remote_code") is False, f"{path}:{call.lineno}"
                if call.func.attr == "from_pretrained":
                    assert given.get("local_files_only") is True, f"{path}:{call.lineno}"
                found.append(call.func.attr)
    assert sorted(found) == ["from_config"] * 3 + ["from_pretrained"] * 2


def test_nothing_reads_the_standard_input() -> None:
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Name) and node.id == "input"), f"{path}:{node.lineno}"
            assert not (isinstance(node, ast.Attribute) and node.attr in ("stdin", "prompt", "confirm")), path


@pytest.fixture
def evil(text: Toy, tmp_path: Path) -> Path:
    """A copy of a base that names code of its own, which leaves a file behind when it is run."""
    folder = shutil.copytree(text.base, tmp_path / "evil")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        change(folder / name, auto_map=AUTO_MAP)
    return folder


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_base_that_transformers_knows_is_run_by_transformers_alone(evil: Path, tmp_path: Path) -> None:
    adapter = get_adapter(open_checkpoint(evil), None, "hf-sequence-classification")
    assert adapter.model({"num_labels": 3}, {}).__class__.__module__.startswith("transformers.models.bert")
    assert adapter.encoder().__class__.__module__.startswith("transformers.models.bert")
    assert not (tmp_path / "ran").exists()


SCRIPT = """
import sys
from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.running_names import running_model
from flexswitch.merging.models.adapters import get_adapter
for base in sys.argv[1:]:
    for name in ("hf-sequence-classification", "hf-causal-lm", "hf-image-classification"):
        try:
            get_adapter(open_checkpoint(base), None, name).model({"auto_map": {"AutoModel": "evil.Evil"}}, {})
        except InputError as error:
            print(error)
"""


@pytest.mark.deep
def test_a_terminal_that_answers_yes_is_not_read(evil: Path, tmp_path: Path) -> None:
    other = shutil.copytree(evil, tmp_path / "other")
    change(other / "config.json", model_type="evil")
    master, slave = pty.openpty()
    os.write(master, b"y\n" * 20)
    command = [sys.executable, "-c", SCRIPT, str(evil), str(other)]
    run = subprocess.run(command, stdin=slave, capture_output=True, text=True, check=True, timeout=300)
    os.set_blocking(slave, False)
    unread = b"".join(os.read(slave, 100) for _ in range(20))  # a terminal gives one line at a time
    os.close(master)
    os.close(slave)
    assert unread == b"y\n" * 20
    assert not (tmp_path / "ran").exists()
    line = (
        f"{other}: transformers {transformers.__version__} has no model type 'evil', and code that "
        "comes with a model is never run; give --adapter python:package.module:factory\n"
    )
    assert run.stdout.endswith(3 * line)


def test_a_head_that_only_own_code_makes_is_refused_by_name(evil: Path) -> None:
    change(evil / "config.json", model_type="clip_text_model", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    with pytest.raises(InputError) as caught:
        get_adapter(open_checkpoint(evil), None, "hf-causal-lm").model({}, {})
    assert str(caught.value) == (
        f"{evil}: transformers makes no AutoModelForCausalLM of a 'clip_text_model' but by code that comes "
        "with it, which is never run; give another --adapter"
    )


CODE: dict[str, Any] = {
    "auto_map": AUTO_MAP,
    "attn_implementation": "org/kernel",
    "_attn_implementation": "kernels-community/flash-attn",
    "_attn_implementation_internal": "org/kernel:attention",
    "experts_implementation": "org/kernel",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "custom_pipelines": {"a": {"impl": "evil.Evil"}},
    "_name_or_path": "org/evil",
    "use_kernels": True,
    "backbone": "resnet50",
    "use_pretrained_backbone": True,
}


@pytest.mark.parametrize("key", CODE)
def test_an_entry_that_picks_code_is_left_out_at_any_depth(text: Toy, key: str) -> None:
    entry = {key: CODE[key]}
    assert model_entries({"text_config": {**entry, "a": 1}, "list": [entry], **entry}) == {
        "text_config": {"a": 1}, "list": [{}],
    }  # fmt: skip
    assert known_changes(transformers.BertConfig, {**entry, "num_labels": 3, "made_up": 1}) == {
        "num_labels": 3
    }
    adapter = get_adapter(open_checkpoint(text.base), None, "hf-encoder")
    model: Any = adapter.model(entry, HEAD)["encoder"]  # type: ignore[index]
    plain: Any = adapter.model({}, HEAD)["encoder"]  # type: ignore[index]
    assert model.config.to_dict() == plain.config.to_dict()
    assert model.config._attn_implementation == plain.config._attn_implementation == "sdpa"


def test_merge_writes_no_names_of_code(evil: Path, text: Toy, tmp_path: Path) -> None:
    change(evil / "config.json", **CODE)
    merge([text.zoo], tmp_path / "out", base=evil, task="birds")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not set(config) & {"auto_map", "attn_implementation", "custom_pipelines", "_name_or_path"}
    assert "auto_map" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (evil / "tokenizer.json").read_bytes()
    assert not (tmp_path / "out" / "evil.py").exists()


def test_merge_writes_no_names_of_code_that_an_artifact_brings(text: Toy, tmp_path: Path) -> None:
    artifact = shutil.copy(next((text.zoo / "tasks").glob("birds.*")), tmp_path / "birds.fsw")
    made_up = {
        "text_config": CODE,
        "compression_config": {"a": 1},
        "trust_remote_code": True,
        "kernels": "a/b",
    }
    entries = CODE | made_up | {"problem_type": "single_label_classification"}
    damage(
        artifact, lambda document: document.setdefault("model", {}).setdefault("config", {}).update(entries)
    )
    merge([artifact], tmp_path / "out", base=text.base, task="birds")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not set(config) & {*CODE, "text_config", "compression_config", "trust_remote_code", "kernels"}
    assert config["problem_type"] == "single_label_classification"


WRITTEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a field of the class": ({"model_type": "bert"}, {"hidden_act": "silu"}),
    "a field of the restored model's class": (
        {"model_type": "bert"},
        {"model_type": "vit", "qkv_bias": False},
    ),
    "an older name": ({"model_type": "llama"}, {"rope_scaling": {"type": "linear"}, "rope_theta": 1e6}),
    "an entry of an unknown base": ({"model_type": "own", "width": 3}, {"width": 4, "num_labels": 2}),
}
NOT_WRITTEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an entry of no class": ({"model_type": "bert"}, {"kernels": "evil/k"}),
    "a field of another class": ({"model_type": "bert"}, {"qkv_bias": False}),
    "an entry that an unknown base lacks": ({"model_type": "own"}, {"width": 4}),
    "an odd model type": ({"model_type": ["bert"]}, {"hidden_act": "silu"}),
    "quantisation that the base names": ({"compression_config": {}}, {"compression_config": {"a": 1}}),
}


@pytest.mark.parametrize("situation", WRITTEN | NOT_WRITTEN)
def test_only_settings_of_the_model_are_written_of_a_task_s_config(situation: str) -> None:
    base, changes = (WRITTEN | NOT_WRITTEN)[situation]
    assert written_changes(base, changes) == (changes if situation in WRITTEN else {})


def test_without_transformers_entries_of_the_base_and_usual_ones_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    changes = {"hidden_act": "silu", "id2label": {"0": "a"}, "kernels": "evil/k", "layer_norm_eps": 1e-3}
    assert written_changes({"model_type": "bert", "hidden_act": "gelu"}, changes) == {
        "hidden_act": "silu", "id2label": {"0": "a"},
    }  # fmt: skip


OUTPUTS = {
    "return_dict": False, "torchscript": True, "output_attentions": True, "output_hidden_states": True,
}  # fmt: skip


@pytest.mark.parametrize("key", OUTPUTS)
def test_a_config_does_not_change_what_a_model_returns(text: Toy, tmp_path: Path, key: str) -> None:
    base = shutil.copytree(text.base, tmp_path / "base")
    change(base / "config.json", **{key: OUTPUTS[key]})
    texts = ["birds3 word1", "tools1"]
    for folder, changes in ((base, {}), (text.base, {key: OUTPUTS[key]})):
        adapter = get_adapter(open_checkpoint(folder), None, "hf-sequence-classification")
        batch = adapter.batch(texts)
        assert adapter.features(adapter.encoder(), batch, "layers:0+1").shape == (2, 32)
        assert adapter.logits(adapter.model(changes, {}), batch).shape == (2, 2)


def test_a_model_that_fails_when_it_runs_is_refused_in_one_line(text: Toy) -> None:
    adapter = get_adapter(open_checkpoint(text.base), None, "hf-sequence-classification")
    model = adapter.model({"chunk_size_feed_forward": 3}, {})
    with pytest.raises(InputError) as caught:
        adapter.logits(model, adapter.batch(["birds3 word1 word2 word4 tools3"]))
    assert str(caught.value).startswith(f"{text.base}: its model fails on the examples (The dimension to be")
    assert str(caught.value).endswith("); check the settings of its config.json and of the task's")


@pytest.mark.deep
def test_the_names_of_a_running_model_are_had_without_code_and_without_end(text: Toy) -> None:
    config = json.loads((text.base / "config.json").read_text())
    plain = running_model(config)
    assert plain is not None
    hostile = running_model(
        config | CODE | {"auto_map": AUTO_MAP, "architectures": ["pipeline", "evil.Evil", 7]}
    )
    assert hostile is not None
    assert hostile.running_names(["embeddings.word_embeddings.weight"])
    for entries in ({"num_hidden_layers": 10**9}, {"num_hidden_layers": 90_000}, {"model_type": ["bert"]}):
        assert running_model(config | entries) is None
