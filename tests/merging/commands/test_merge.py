"""`merge` of several sources: names, weights, tensors left out, and what is refused before anything is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as torch_save_file
from support.checkpoints import message

import flexswitch
from flexswitch.codecs.errors import ArtifactError, InputError, UsageError
from flexswitch.codecs.format.named_path import split_named_path


def merge(*sources: str, **options: Any) -> dict[str, np.ndarray]:
    flexswitch.merge(list(sources), "out", base="base.safetensors", overwrite=True, **options)
    return dict(load_file("out/model.safetensors"))


@pytest.fixture
def resized(models: Path) -> None:
    """Makes grown.safetensors, red with three rows more."""
    red = load_file("red.safetensors")
    red["embed.weight"] = np.concatenate([red["embed.weight"], np.ones((3, 16), np.float32)])
    save_file(red, "grown.safetensors")


def test_sources_of_all_kinds_merge_as_their_checkpoints_do(zoo: Path) -> None:
    flexswitch.extract("base.safetensors", "blue.safetensors", "blue.tv.safetensors")
    expected = merge("red.safetensors", "blue.safetensors", method="average")
    found = merge("red.safetensors", "blue.tv.safetensors", method="average")
    assert all(np.array_equal(found[name], weights) for name, weights in expected.items())
    both = merge("zoo", "third=red.safetensors", method="average")
    assert sorted(both) == sorted(expected)


def test_tasks_are_renamed_where_names_would_clash(models: Path) -> None:
    (models / "other").mkdir()
    (models / "red.safetensors").rename(models / "other" / "blue.safetensors")
    sources = ["other/blue.safetensors", "blue.safetensors"]
    found = message(InputError, lambda: merge(*sources, method="average"))
    assert found == (
        "blue.safetensors: holds the task 'blue', as other/blue.safetensors does; "
        "give it another name: NAME=blue.safetensors"
    )
    merged = merge("red=other/blue.safetensors", "blue.safetensors", method="average", weights={"red": 3})
    red, blue, base = map(load_file, ("other/blue.safetensors", "blue.safetensors", "base.safetensors"))
    for name in base:
        np.testing.assert_allclose(merged[name], 0.75 * red[name] + 0.25 * blue[name], atol=1e-6)
    assert "tasks: red, blue" in Path("out/README.md").read_text()


def test_one_name_is_not_for_a_zoo_of_several_tasks(zoo: Path) -> None:
    assert "names one task, and zoo holds " in message(UsageError, lambda: merge("a=zoo", method="average"))


def test_an_excluded_tensor_stays_the_base_s(zoo: Path) -> None:
    base = load_file("base.safetensors")
    for source in ("red.safetensors", "zoo"):
        merged = merge(source, method="average", exclude=["embed*"])
        assert np.array_equal(merged["embed.weight"], base["embed.weight"])
        assert not np.array_equal(merged["layer.weight"], base["layer.weight"])


def test_restoring_one_task_of_a_zoo_reads_no_other(zoo: Path) -> None:
    expected = merge("zoo", task="red")
    for file in (zoo / "zoo" / "tasks").glob("blue.*"):
        file.write_bytes(b"damaged")
    found = merge("zoo", task="red")
    assert all(np.array_equal(found[name], weights) for name, weights in expected.items())
    with pytest.raises(ArtifactError, match="is not the file that was packed as task 'blue'"):
        merge("zoo", method="average")


def test_what_single_tasks_store_whole_is_named_on_the_screen_and_in_the_card(
    models: Path, capsys: pytest.CaptureFixture[str], flexswitch: Any
) -> None:
    command = ("merge", "red.safetensors", "blue.safetensors", "--base", "base.safetensors", "-o", "out")
    found = flexswitch(*command, "--method", "average")
    assert found.status == 0
    line = "head.weight of red, blue left out: stored whole, not as a difference"
    assert line in found.err
    assert f"- left out: {line}" in Path("out/README.md").read_text()


def test_a_tensor_of_another_shape_is_refused_with_ways_out(resized: None) -> None:
    flexswitch.extract("base.safetensors", "grown.safetensors", "g.tv.safetensors", on_resize="extra")
    expected = (
        "g.tv.safetensors: tensor 'embed.weight' has the shape [43, 16], expected the base's [40, 16]; "
        "make the task vector again with --on-resize rows, or keep the base's with --exclude 'embed.weight'"
    )
    assert message(InputError, lambda: merge("g.tv.safetensors", method="average")) == expected
    base, grown = load_file("base.safetensors"), load_file("grown.safetensors")
    kept = merge("g.tv.safetensors", method="average", exclude=["embed.weight"])
    assert np.array_equal(kept["embed.weight"], base["embed.weight"])
    flexswitch.extract("base.safetensors", "grown.safetensors", "r.tv.safetensors", on_resize="rows")
    for found in (
        merge("r.tv.safetensors", method="average"),
        merge("grown.safetensors", method="average", on_resize="rows"),
    ):
        np.testing.assert_allclose(found["embed.weight"], grown["embed.weight"][:40], atol=1e-6)


def test_a_resized_checkpoint_is_restored_whole_or_merged_by_rows(resized: None) -> None:
    assert "--on-resize" in message(InputError, lambda: merge("grown.safetensors", task="grown"))
    refused = message(InputError, lambda: merge("grown.safetensors", method="average"))
    assert "take the overlapping rows with --on-resize rows, or keep the base's with --exclude" in refused
    whole = merge("grown.safetensors", task="grown", on_resize="extra")
    assert np.array_equal(whole["embed.weight"], load_file("grown.safetensors")["embed.weight"])
    refused = message(InputError, lambda: merge("grown.safetensors", method="average", on_resize="extra"))
    assert (
        "expected the base's [40, 16]; a merge has no place for it whole, as --on-resize extra has it; take the "
        "overlapping rows with --on-resize rows, or keep the base's with --exclude 'embed.weight'"
    ) in refused


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"task": "red", "weights": {"red": 2}}, "--weight and --set-for are for --method"),
        ({"task": "red", "exclude": ["embed*"]}, "zoo"),
        ({"method": "average", "weights": {"green": 2}}, "--weight green: no task is named 'green'"),
        ({"method": "task-arithmetic", "settings": {"lambda": "x"}}, "setting lambda=x of task-arithmetic"),
        ({"method": "task-arithmetic", "set_for": [("*", {"lambda": "x"})]}, "setting lambda=x of task-arithmetic"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_and_nothing_is_written(
    zoo: Path, options: dict[str, Any], expected: str
) -> None:
    assert expected in message(UsageError, lambda: merge("zoo", **options))
    assert not Path("out").exists()


def test_a_command_line_gives_weights_and_settings_for_single_tensors(models: Path, flexswitch: Any) -> None:
    command = ("merge", "red.safetensors", "blue.safetensors", "--base", "base.safetensors", "-o", "out")
    options = ("--weight", "blue=-1", "--set", "lambda=1", "--set-for", "red:layer.*:weight=0", "--jobs", "2")
    assert flexswitch(*command, "--method", "task-arithmetic", *options, "--memory", "1MB").status == 0
    red, blue, base = map(load_file, ("red.safetensors", "blue.safetensors", "base.safetensors"))
    for name, weights in load_file("out/model.safetensors").items():
        kept = 0 if name.startswith("layer") else 1
        expected = base[name] + kept * (red[name] - base[name]) - (blue[name] - base[name])
        np.testing.assert_allclose(weights, expected, atol=1e-6)
    wrong = flexswitch(*command, "--method", "average", "--set-for", "lambda=1")
    assert (wrong.status, wrong.error) == (
        2,
        "--set-for lambda=1: expected GLOB:KEY=VALUE or TASK:GLOB:KEY=VALUE",
    )


@pytest.mark.parametrize(("method", "dtype", "noted"), [
    ("iso-c", "BF16", True), ("tsv-m", "BF16", True), ("iso-c", "F32", False), ("average", "BF16", False),
])  # fmt: skip
def test_rounded_models_are_noted_where_singular_values_are_merged(
    models: Path, flexswitch: Any, method: str, dtype: str, noted: bool
) -> None:
    if dtype == "BF16":
        half = {
            name: torch.from_numpy(each).bfloat16() for name, each in load_file("red.safetensors").items()
        }
        torch_save_file(half, "red.safetensors")
    command = ("merge", "red.safetensors", "blue.safetensors", "--base", "base.safetensors", "-o", "out")
    found = flexswitch(*command, "--method", method)
    note = f"{method} takes the rounding of red to 16 bits for changes in all directions"
    assert (found.status, note in found.err) == (0, noted)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a b", "expected letters, digits"), ("../x", "expected letters"), ("con", "is reserved"), ("x" * 140, "has 140")],
)  # fmt: skip
def test_a_name_before_a_path_that_is_no_tasks_name_is_refused(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "tuned").mkdir()
    given = f"{name}={tmp_path / 'tuned'}"
    found = message(UsageError, lambda: split_named_path(given))
    assert found.startswith(f"{given}: the task's name '{name}': {reason}")


def test_a_text_with_an_equals_sign_may_be_a_path(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert split_named_path(tmp_path / "a=b") == (None, str(tmp_path / "a=b"))
    assert split_named_path("a b=c") == (None, "a b=c")  # no path either
    assert split_named_path("a=c") == ("a", "c")
