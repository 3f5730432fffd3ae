"""Settings of methods are read from `key=value` texts by the method's own signature."""

from typing import Literal

import pytest
from support.checkpoints import message

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.checkpoints.architecture import detect_adapter
from flexswitch.merging.compression.t_switch import t_switch
from flexswitch.merging.methods.settings import parse_settings, setting_texts
from flexswitch.merging.static.average import average
from flexswitch.merging.static.task_arithmetic import task_arithmetic


def method(
    delta: object,
    *,
    share: float = 0.5,
    steps: int = 10,
    rescale: bool = True,
    kind: Literal["mean", "sum"] = "mean",
    lambda_: float | None = None,
) -> None:
    """Stands for a method with a setting of each type."""


def refused(*texts: str) -> str:
    return message(UsageError, lambda: parse_settings("method", method, texts))


def test_the_defaults_are_given_in_full() -> None:
    expected = {"share": 0.5, "steps": 10, "rescale": True, "kind": "mean", "lambda_": None}
    assert parse_settings("method", method, []) == expected
    assert parse_settings("t-switch", t_switch, []) == {"drop": 0.6}
    assert parse_settings("average", average, []) == {}


def test_texts_become_the_types_of_the_signature() -> None:
    texts = ["share=1e-3", "steps=-7", "rescale=false", "kind=sum", "lambda=-2"]
    found = parse_settings("method", method, texts)
    assert found == {"share": 0.001, "steps": -7, "rescale": False, "kind": "sum", "lambda_": -2.0}
    assert [type(value) for value in found.values()] == [float, int, bool, str, float]


def test_lambda_is_written_without_its_underscore() -> None:
    assert parse_settings("task-arithmetic", task_arithmetic, ["lambda=0.4"]) == {"lambda_": 0.4}
    assert setting_texts({"lambda_": 0.4, "drop": 0.6}) == ["lambda=0.4", "drop=0.6"]


def test_the_last_of_two_texts_counts() -> None:
    assert parse_settings("t-switch", t_switch, ["drop=0.5", "drop=0.9"]) == {"drop": 0.9}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("steps", "expected key=value"),
        ("steps=1.5", "Input should be a valid integer, unable to parse string as an integer"),
        ("rescale=maybe", "Input should be a valid boolean, unable to interpret input"),
        ("kind=max", "Input should be 'mean' or 'sum'"),
        ("share=", "Input should be a valid number, unable to parse string as a number"),
        ("share=nan", "expected a finite number"),
        ("lambda=inf", "expected a finite number"),
        ("lambda=-1e999", "expected a finite number"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(text: str, problem: str) -> None:
    assert refused("steps=3", text) == f"--set {text}: {problem}"


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("step=3", "; did you mean 'steps'?"), ("xyz=3", ""), ("=3", ""), ("delta=3", ""), ("lambda_=3", None)],
)
def test_an_unknown_setting_is_refused_with_the_nearest(text: str, nearest: str | None) -> None:
    nearest = "; did you mean 'lambda'?" if nearest is None else nearest
    assert refused(text) == (
        f"--set {text}: no setting of method is named '{text.split('=')[0]}'{nearest} "
        "(known: share, steps, rescale, kind, lambda)"
    )


def test_a_method_without_settings_takes_none() -> None:
    assert message(UsageError, lambda: parse_settings("average", average, ["lambda=1"])) == (
        "--set lambda=1: no setting of average is named 'lambda' (known: none)"
    )


def test_a_drop_rate_that_is_no_number_is_refused() -> None:
    assert message(UsageError, lambda: parse_settings("t-switch", t_switch, ["drop=abc"])) == (
        "--set drop=abc: Input should be a valid number, unable to parse string as a number"
    )


@pytest.mark.parametrize(
    ("config", "extras", "adapter"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, [], "hf-sequence-classification"),
        ({"architectures": ["ViTForImageClassification"]}, [], "hf-image-classification"),
        ({"architectures": ["BertModel"]}, ["head.bias", "head.weight"], "hf-encoder"),
        ({"architectures": ["BertModel"]}, ["classifier.weight"], None),
        ({"architectures": None}, [], None),
        ({"architectures": "ViTForImageClassification"}, [], None),
        ({}, [], None),
    ],
)
def test_the_adapter_is_told_from_the_config_and_the_extras(
    config: dict[str, object], extras: list[str], adapter: str | None
) -> None:
    assert detect_adapter(config, extras) == adapter
