"""The patterns of a LoRA's config are matched quickly, or refused."""

import json
import time
from pathlib import Path

import pytest

from flexswitch.codecs.errors import InputError
from flexswitch.merging.task_vectors.lora_config import LoraConfig, read_lora_config

LONG = "model.layers.0." + "a" * 200 + ".b"


def config_of(folder: Path, pattern: str) -> LoraConfig:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 2, "rank_pattern": {pattern: 3}}))
    return read_lora_config("lora", path)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*x", "(.*)*", "(a?){30}x", ".*.*.*x", "a+a+a+x", "(?:a*)+", "(a{1,9}){1,9}x"]
)
def test_a_pattern_that_could_take_for_ever_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(
        InputError, match=r"at most 2 repeats \(\* \+ \? \{\}\) and none of a group"
    ) as caught:
        config_of(tmp_path, pattern)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "rank"),
    [
        ("q_proj", 2),
        (r"model\.layers\.\d+\.a+\.b", 3),
        (r".*\.b", 3),
        (r"[a+*?{]+\.b", 3),
        ("b", 3),
        ("(a|b)", 3),
    ],
)
def test_a_usual_pattern_is_matched_soon(tmp_path: Path, pattern: str, rank: int) -> None:
    config = config_of(tmp_path, pattern)
    began = time.process_time()
    assert config.rank_and_scaling(LONG)[0] == rank
    assert time.process_time() - began < 1


def test_the_slowest_pattern_that_is_taken_takes_no_second(tmp_path: Path) -> None:
    config = config_of(tmp_path, "a*a*x")
    began = time.process_time()
    assert config.rank_and_scaling("a" * 500)[0] == 2
    assert time.process_time() - began < 1
