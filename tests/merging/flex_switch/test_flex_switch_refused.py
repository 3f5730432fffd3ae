"""What `compress --method flexswitch` refuses: wrong usage, and what the user has to decide."""

import re
from pathlib import Path

import pytest
from support.commands import Runner, files_below
from support.compressing import TRAIN, Compress
from support.tiny_models import Toy

FLEX, SIGNS = ("--method", "flexswitch"), ("--method", "t-switch")
NONE = (*FLEX, "--set", "objective=none")
UNTRAINED = "does not learn from examples; those that do: flexswitch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*SIGNS, "--target-size", "4KB"), "--target-size: t-switch meets no size; those that do: flexswitch"),
        (
            (*NONE, "--target-size", "4KB", "--set", "target_size=5KB"),
            "give one of --target-size and --set target_size",
        ),
        (
            (*NONE, "--target-size", "4XB"),
            "target size '4XB': expected bytes (400KB), a share of float32 (0.5%) or bits per parameter (0.16bpp)",
        ),
        (
            (*NONE, "--set", "target_size=lots"),
            "target size 'lots': expected bytes (400KB), a share of float32 (0.5%) or bits per parameter (0.16bpp)",
        ),
        ((*SIGNS, "--exemplars", "d"), f"--exemplars: t-switch {UNTRAINED}"),
        ((*SIGNS, "--device", "cuda"), f"--device: t-switch {UNTRAINED}"),
        ((*SIGNS, "--adapter", "hf-encoder"), f"--adapter: t-switch {UNTRAINED}"),
        (
            (*SIGNS, "--per-task", "9", "--checkpoint-every", "5"),
            f"--per-task, --checkpoint-every: t-switch {UNTRAINED}",
        ),
        ((*NONE, "--exemplars", "d"), f"--exemplars: flexswitch with objective=none {UNTRAINED}"),
        (
            FLEX,
            "flexswitch learns from examples: give --exemplars DIR, or learn from none with --set objective=none",
        ),
        ((*FLEX, "--exemplars", "{data}", "--device", "gpu"), "--device: no device is named 'gpu'; did you mean 'cpu'?"),
        (
            (*FLEX, "--exemplars", "{data}", "--adapter", "hf-encode"),
            "no adapter is named 'hf-encode'; did you mean 'hf-encoder'?",
        ),
        (
            (*FLEX, "--exemplars", "{data}", "--set", "lambda=1", "--target-size", "4KB"),
            "lambda=1.0: give an objective with data, and no target size",
        ),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_or_is_wrong_ends_with_status_2(
    compress: Compress, text: Toy, arguments: tuple[str, ...], message: str
) -> None:
    outcome = compress(settings=tuple(word.format(data=text.data) for word in arguments))
    assert (outcome.status, outcome.error.split(" (known: ")[0]) == (2, message)
    assert compress.left() == []


@pytest.fixture
def vector(flexswitch: Runner, text: Toy, tmp_path: Path) -> Path:
    path = tmp_path / "birds.tv.safetensors"
    assert flexswitch("extract", text.base, text.finetuned["birds"], "-o", path).status == 0
    return path


def test_a_task_vector_alone_is_refused_for_training(vector: Path, flexswitch: Runner, text: Toy) -> None:
    output = vector.with_name("birds.fsw")
    outcome = flexswitch("compress", vector, "-o", output, *TRAIN, "--exemplars", text.data)
    assert (outcome.status, outcome.error) == (
        2,
        "flexswitch runs the model to learn: give --base BASE, or --set objective=none",
    )


@pytest.mark.parametrize("method", [TRAIN, SIGNS])
def test_a_task_vector_of_another_base_is_refused(
    vector: Path, flexswitch: Runner, text: Toy, image: Toy, method: tuple[str, ...]
) -> None:
    command = ("compress", vector, "--base", image.base, "-o", vector.with_name("birds.fsw"), *method)
    outcome = flexswitch(*command, *(("--exemplars", text.data) if method is TRAIN else ()))
    assert outcome.status == 1
    assert outcome.error.startswith(f"{image.base}: is not the base of {vector}: its fingerprint is ")


def test_tensors_are_chosen_where_the_task_vector_is_made(
    vector: Path, flexswitch: Runner, text: Toy
) -> None:
    command = ("compress", vector, "--base", text.base, "-o", vector.with_name("birds.fsw"), *SIGNS)
    outcome = flexswitch(*command, "--include", "*")
    assert (outcome.status, outcome.error) == (
        2,
        "--include, --exclude, --on-resize and --key need a checkpoint and --base; give them to `extract` instead",
    )


def test_bare_weights_can_not_be_run(models: Path, flexswitch: Runner, text: Toy) -> None:
    before = files_below(models)
    command = ("compress", "red.safetensors", "--base", "base.safetensors", "-o", "birds.fsw", *TRAIN)
    outcome = flexswitch(*command, "--exemplars", text.data)
    assert (outcome.status, outcome.error) == (
        1,
        "base.safetensors: has no config.json with a 'model_type'; give a model directory",
    )
    assert files_below(models) == before


def test_too_few_exemplars_are_refused(compress: Compress, text: Toy) -> None:
    outcome = compress("--exemplars", text.data, settings=(*FLEX, "--target-size", "4KB"))
    assert (outcome.status, outcome.error) == (
        1,
        f"{text.data / 'birds.train.jsonl.gz'}: 20 exemplars, expected 32 or more; give more, or "
        "allow fewer with --set min_exemplars=20, or use none with --set objective=none",
    )
    assert compress.left() == []


def test_a_size_below_the_head_s_is_refused(compress: Compress) -> None:
    outcome = compress.train("--set", "seed=0", "--target-size", "300")
    assert outcome.status == 1
    assert re.fullmatch(
        rf"{compress.source}: target size 300 is 300 bytes, and the task's own tensors \(its "
        r"head\) with the header take [\d,]+ of them; ask for more than that",
        outcome.error,
    )
