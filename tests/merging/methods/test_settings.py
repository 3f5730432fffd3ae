"""Settings of methods are checked by the annotations of the method's own function."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from support.checkpoints import message

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.checkpoints.architecture import detect_adapter
from flexswitch.merging.methods.registry import Method, get_method
from flexswitch.merging.methods.settings import (
    check_settings,
    compressions_with,
    describe_settings,
    parse_overrides,
    parse_settings,
    recorded,
)


def example(
    delta: object,
    *,
    share: Annotated[float, Field(ge=0, lt=1, description="share to keep")] = 0.5,
    steps: int = 10,
    rescale: bool = True,
    kind: Literal["mean", "sum"] = "mean",
    width: Literal[16, 32] = 32,
    title: str = "",
    lambda_: Annotated[float | None, Field(gt=0)] = None,
) -> None:
    """Stands for a method with a setting of each type."""


EXAMPLE = Method("example", "compression", f"{__name__}:example", ("a tensor's delta",), "")


def checked(**settings: Any) -> dict[str, Any]:
    return dict(check_settings(EXAMPLE, settings))


def refused(**settings: Any) -> str:
    return message(UsageError, lambda: check_settings(EXAMPLE, settings))


def test_the_defaults_are_filled_in() -> None:
    assert checked() == {
        "share": 0.5, "steps": 10, "rescale": True, "kind": "mean", "width": 32, "title": "", "lambda_": None,
    }  # fmt: skip
    assert dict(check_settings(get_method("t-switch", "compression"), {})) == {"drop": 0.6}
    assert dict(check_settings(get_method("average", "merge"), {})) == {}


def test_texts_become_the_types_of_the_signature() -> None:
    texts = ["share=1e-3", "steps=-7", "rescale=false", "kind=sum", "width=16", "title=a=b", "lambda=2"]
    found = checked(**parse_settings(texts))
    assert list(found.values()) == [0.001, -7, False, "sum", 16, "a=b", 2.0]
    assert [type(value) for value in found.values()] == [float, int, bool, str, int, str, float]


def test_lambda_is_written_without_its_underscore_and_none_is_not_recorded() -> None:
    settings = check_settings(EXAMPLE, {"lambda": 0.4})
    assert dict(settings)["lambda_"] == 0.4
    assert recorded(settings)["lambda"] == 0.4
    assert "lambda" not in recorded(check_settings(EXAMPLE, {}))


def test_the_last_of_two_texts_counts() -> None:
    assert parse_settings(["drop=0.5", "drop=0.9"]) == {"drop": "0.9"}


def test_a_text_without_a_value_is_refused() -> None:
    assert message(UsageError, lambda: parse_settings(["steps"])) == "--set steps: expected KEY=VALUE"
    assert (
        message(UsageError, lambda: parse_settings(["sst2"], "--weight", "TASK=W"))
        == "--weight sst2: expected TASK=W"
    )


def test_a_task_whose_name_holds_an_equals_sign_takes_weights_and_settings() -> None:
    assert parse_settings(["x=y=-0.5", "cola=2"], at_last=True) == {"x=y": "-0.5", "cola": "2"}
    assert parse_overrides(["x=y:*:weight=0.5"]) == [("x=y:*", {"weight": "0.5"})]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("steps", "1.5", "a whole number"),
        ("rescale", "maybe", "true or false"),
        ("kind", "max", "mean or sum"),
        ("width", "8", "16 or 32"),
        ("width", 8, "16 or 32"),
        ("title", 3, "a text"),
        ("share", "", "a number of at least 0 and below 1"),
        ("share", "nan", "a number of at least 0 and below 1"),
        ("share", 1.0, "a number of at least 0 and below 1"),
        ("lambda", "inf", "a number above 0"),
        ("lambda", 0, "a number above 0"),
    ],
)
def test_a_value_outside_its_range_is_refused(key: str, value: Any, expected: str) -> None:
    found = refused(**{"steps": 3, key: value})
    assert found == f"setting {key}={value} of example: expected {expected}"


@pytest.mark.parametrize(
    ("key", "nearest"), [("step", "steps"), ("xyz", None), ("", None), ("delta", None), ("lambda_", "lambda")]
)
def test_an_unknown_setting_is_refused_with_the_nearest(key: str, nearest: str | None) -> None:
    hint = f"; did you mean '{nearest}'?" if nearest else ""
    assert refused(**{key: 3}).startswith(f"no setting of example is named '{key}'{hint} (known: share, ")


def test_an_unknown_name_is_reported_before_a_wrong_value() -> None:
    assert refused(share=2, step=3).startswith("no setting of example is named 'step'")


def test_a_method_without_settings_takes_none() -> None:
    found = message(UsageError, lambda: check_settings(get_method("average", "merge"), {"lambda": 1}))
    assert found == "no setting of average is named 'lambda' (known: none)"


def test_settings_are_described_with_default_range_and_meaning() -> None:
    share, *_, last = describe_settings(EXAMPLE)
    assert share == ("share", 0.5, "a number of at least 0 and below 1", "share to keep")
    assert (last.name, last.default, last.expected) == ("lambda", None, "a number above 0")


def test_compression_methods_are_found_by_a_setting() -> None:
    assert compressions_with("target_size") == ["flexswitch"]
    assert "t-switch" in compressions_with("drop")


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
