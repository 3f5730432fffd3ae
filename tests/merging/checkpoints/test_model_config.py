"""The entries of config.json that a config class of transformers knows, and what they are by default."""

from dataclasses import dataclass
from typing import Any

import pytest

from flexswitch.merging.checkpoints import model_config
from flexswitch.merging.checkpoints.model_config import with_defaults, written_changes, written_config


@dataclass
class Now:
    attribute_map = {}  # noqa: RUF012
    vocab_size: int = 5
    sides: tuple[int, int] = (1, 2)
    act: str = "gelu"


class Parent:
    attribute_map: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, act: str = "relu", sides: tuple[int, int] = (1, 2), **others: Any) -> None: ...


class Before(Parent):
    """A config class of transformers 5.0."""

    def __init__(self, vocab_size: int = 5, act: str = "gelu", **others: Any) -> None: ...


@pytest.mark.parametrize("kind", [Now, Before])
def test_what_a_config_lacks_is_its_class_s_default(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_config, "_installed_class", lambda model_type: kind)
    base = {"model_type": "m", "act": "relu", "sides": [3], "own": 1, "rope_scaling": {"factor": 2}}
    assert with_defaults(base, {"vocab_size": 6}) == {
        "vocab_size": 6,
        "act": "gelu",
        "sides": [1, 2],
        "rope_scaling": None,
    }
    assert written_changes(base, {"act": "tanh", "own": 2, "others": 3}) == {"act": "tanh"}


def test_an_entry_under_another_name_is_not_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Now, "attribute_map", {"words": "vocab_size"})
    monkeypatch.setattr(model_config, "_installed_class", lambda model_type: Now)
    assert with_defaults({"vocab_size": 8}, {"words": 9}) == {"words": 9}


def test_without_a_known_class_nothing_is_added() -> None:
    assert with_defaults({"model_type": "none", "act": "relu"}, {"model_type": "none"}) == {
        "model_type": "none"
    }


def test_a_model_of_another_type_keeps_the_entries_of_its_own_class_alone() -> None:
    base = {
        "model_type": "clip",
        "text_config": {"hidden_size": 8},
        "projection_dim": 8,
        "initializer_factor": 2.0,
    }
    changes = {"model_type": "clip_vision_model", "hidden_size": 16}
    written = {"projection_dim": 8, "initializer_factor": 2.0}
    assert written_config(base, changes) == written | changes
    assert written_config(base, {"projection_dim": 4}) == base | {"projection_dim": 4}
    assert written_config(base, {"model_type": "unknown"}) == base | {"model_type": "unknown"}
