"""A config.json that asks for more than its checkpoint holds is refused before it takes memory or time."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import Toy

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter

HEAD = {"head.weight": TensorInfo("F32", (2, 16))}
HUGE = 10**9


@pytest.fixture
def base(text: Toy, tmp_path: Path) -> Path:
    return shutil.copytree(text.base, tmp_path / "base")


def refusal(base: Path, adapter: str, changes: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        get_adapter(open_checkpoint(base), None, adapter).model(changes, HEAD)
    return str(caught.value).removeprefix(f"{base}: ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": HUGE}, "its config.json asks for num_hidden_layers 1,000,000,000, expected 100,000 at most"),
        ({"num_labels": HUGE}, "its config.json asks for num_labels 1,000,000,000, expected 100,000 at most"),
        ({"num_hidden_layers": 90_000}, "more than 2,"),
        ({"hidden_size": HUGE, "num_attention_heads": 1}, "more than 67,"),
        ({"vocab_size": HUGE}, "more than 67,"),
        ({"max_position_embeddings": HUGE}, "more than 67,"),
        ({"intermediate_size": 10**12}, "more than 67,"),
        ({"hidden_size": -1}, "transformers cannot make an"),
        ({"hidden_size": "wide"}, "transformers cannot make an"),
        ({"hidden_act": "evil"}, "transformers cannot make an"),
        ({"id2label": [1]}, "transformers cannot make an"),
        ({"model_type": ["bert"]}, "has no config.json with a 'model_type'"),
        ({"model_type": "timm_wrapper", "architecture": "hf-hub:org/evil"}, "transformers 5"),
    ],
    ids=str,
)  # fmt: skip
def test_a_task_that_asks_for_another_model_is_refused(base: Path, changes: Any, expected: str) -> None:
    found = refusal(base, "hf-sequence-classification", changes)
    assert expected in found
    assert "\n" not in found


def test_a_head_of_another_width_is_refused(base: Path) -> None:
    adapter = get_adapter(open_checkpoint(base), None, "hf-encoder")
    for shape in ((2, 8), (2,), (0, 16), (2, 16, 1)):
        with pytest.raises(InputError, match="expected a row of 16 for each class"):
            adapter.model({}, {"head.weight": TensorInfo("F32", shape)})


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("config.json", {"model_type": ["bert"]}),
        ("config.json", {"num_hidden_layers": HUGE}),
        ("config.json", {"vocab_size": HUGE}),
        ("config.json", {"hidden_size": 4}),
        ("config.json", {"max_position_embeddings": -1}),
        ("config.json", {"dtype": "evil"}),
        ("config.json", {"a": "\ud800"}),
        ("tokenizer_config.json", {"model_max_length": "x"}),
        ("tokenizer_config.json", {"model_max_length": -1}),
        ("tokenizer_config.json", {"pad_token": None}),
    ],
    ids=str,
)
def test_a_damaged_base_is_refused_in_one_line(base: Path, file: str, entries: dict[str, Any]) -> None:
    (base / file).write_text(json.dumps(json.loads((base / file).read_text()) | entries))

    def run() -> None:
        adapter = get_adapter(open_checkpoint(base), None, "hf-encoder")
        adapter.encoder()
        adapter.model({}, HEAD)

    with pytest.raises(InputError) as caught:
        run()
    assert str(caught.value).startswith(str(base))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(base: Path) -> None:
    text = (base / "tokenizer.json").read_text()
    document = json.loads(text)
    vocabulary = document["model"]["vocab"]
    vocabulary["word0"] = 10**6
    (base / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="its tokenizer gives the token 1000000, and the model has"):
        get_adapter(open_checkpoint(base), None, "hf-encoder").batch(["word0"])


@pytest.mark.deep
def test_a_huge_config_takes_neither_memory_nor_time(base: Path) -> None:
    script = (
        "import sys\n"
        "from flexswitch.merging.checkpoints.opening import open_checkpoint\n"
        "from flexswitch.merging.models.adapters import get_adapter\n"
        "adapter = get_adapter(open_checkpoint(sys.argv[1]), None, 'hf-sequence-classification')\n"
        "for changes in ({'num_hidden_layers': 99_999}, {'hidden_size': 2**40, 'num_attention_heads': 1}):\n"
        "    try:\n"
        "        adapter.model(changes, {})\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
        "import resource\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))

    command = [sys.executable, "-c", script, str(base)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=limit)
    *errors, kilobytes = run.stdout.split()
    assert errors == ["InputError", "InputError"]
    assert int(kilobytes) < 1_500_000
