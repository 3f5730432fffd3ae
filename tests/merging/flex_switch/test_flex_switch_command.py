"""`compress --method flexswitch`, and what other commands make of it, on tiny models."""

import json
import re
from pathlib import Path

import pytest
from support.commands import Runner, files_below
from support.compressing import TRAIN, Compress
from support.tiny_models import Toy
from support.zoo_files import task_file

from flexswitch.codecs.format.container import open_artifact

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_text_classifier_is_compressed_to_the_size_asked_for(compress: Compress) -> None:
    outcome = compress.train("--set", "seed=3")
    assert outcome.status == 0
    size, header = compress.output.stat().st_size, open_artifact(compress.output).header
    assert 0.9 * 4000 < size <= 4000
    assert header.training is not None
    assert (header.training.exemplars, header.training.held_out) == (12, 8)
    assert header.training.after.divergence < header.training.before.divergence
    assert header.training.curve[-1][0] == 6
    first, second, third = outcome.out.splitlines()
    assert first.startswith(f"{compress.output}: task 'birds' by flexswitch, kept ")
    numbers = re.fullmatch(
        r"learned from 12 exemplars: divergence from the fine-tuned model (\S+) → (\S+), the same answer to "
        r"(\S+) %; of 8 held out: \S+, \S+ %",
        second,
    )
    assert numbers is not None
    assert float(numbers[1]) == header.training.before.divergence
    assert float(numbers[2]) == header.training.after.divergence
    assert header.error is not None
    assert third.startswith(f"relative error {header.error.relative:g} of all tensors; worst: ")
    assert compress.left() == ["birds.fsw"]


@pytest.mark.deep
def test_a_task_vector_and_its_checkpoint_give_the_same_artifact_of_an_image_classifier(
    flexswitch: Runner, image: Toy, tmp_path: Path
) -> None:
    vector = tmp_path / "dark.tv.safetensors"
    assert flexswitch("extract", image.base, image.finetuned["dark"], "-o", vector).status == 0
    for source, output in ((vector, "one.fsw"), (image.finetuned["dark"], "two.fsw")):
        command = (
            "compress",
            source,
            "--base",
            image.base,
            "-o",
            tmp_path / output,
            "--name",
            "dark",
            *TRAIN,
        )
        outcome = flexswitch(*command, "--exemplars", image.data, "--per-task", 10, "--set", "steps=20")
        assert outcome.status == 0
    assert (tmp_path / "one.fsw").read_bytes() == (tmp_path / "two.fsw").read_bytes()


@pytest.mark.deep
def test_the_bytes_depend_on_neither_the_process_nor_the_threads(
    compress: Compress, trained_file: Path
) -> None:
    for jobs in (1, 2):
        assert compress.train("--jobs", jobs, "--overwrite").status == 0
        assert compress.output.read_bytes() == trained_file.read_bytes()


@pytest.mark.deep
def test_the_exemplars_are_those_of_the_task_s_name(compress: Compress, text: Toy) -> None:
    assert compress.train("--name", "tools", "--set", "steps=30").status == 0
    assert open_artifact(compress.output).header.name == "tools"
    outcome = compress.train("--name", "rivers", "--overwrite")
    assert (outcome.status, outcome.error) == (
        1,
        f"{text.data}: has no train file of the task 'rivers'; expected rivers.train with one of .jsonl.gz, "
        ".jsonl, .csv, .parquet, .npz (it has: birds, cities, tools); --name gives the task another name",
    )


@pytest.mark.deep
def test_json_and_quiet_say_the_result_alone(compress: Compress) -> None:
    outcome = compress.train("--json", "--quiet", "--set", "seed=3")
    assert outcome.err == ""
    document = json.loads(outcome.out)
    assert document["bytes"] == compress.output.stat().st_size
    assert document["settings"]["target_size"] == "4KB"
    learning = document["training"]
    assert list(learning) == ["exemplars", "exemplars_sha256", "held_out", "before", "after"]
    assert learning["after"]["divergence"] < learning["before"]["divergence"]


@pytest.mark.deep
def test_without_a_terminal_every_50_steps_are_reported(compress: Compress) -> None:
    outcome = compress.train("--set", "steps=60")
    stands = r"loss \d\S*, \d+\.\d{3} bits per parameter"
    lines = [line for line in outcome.err.splitlines() if " of 60: " in line]
    assert len(lines) in (2, 4, 6)  # more where the steps did not help and were taken again
    for number, line in enumerate(lines):
        left = r"50 of 60: {}, (under 1 s|(\d+ min )?\d+ s) left" if number % 2 == 0 else r"60 of 60: {}"
        assert re.fullmatch("flexswitch: step " + left.replace("{}", stands), line)


@pytest.mark.deep
def test_features_are_compared_without_answers(compress: Compress, flexswitch: Runner) -> None:
    outcome = compress.train("--set", "objective=mse", "--set", "steps=1")
    assert outcome.status == 0
    assert "%" not in outcome.out.splitlines()[1]
    assert flexswitch("inspect", compress.output).out.splitlines()[-1].split()[-2:] == ["–", "–"]


def test_the_data_free_allocation_takes_no_examples_and_leaves_no_record(
    compress: Compress, flexswitch: Runner
) -> None:
    outcome = compress("--set", "objective=none")
    assert (outcome.status, len(outcome.out.splitlines())) == (0, 2)
    assert open_artifact(compress.output).header.training is None


@pytest.mark.deep
def test_inspect_shows_the_record_of_training(trained_file: Path, flexswitch: Runner) -> None:
    record = open_artifact(trained_file).header.training
    assert record is not None
    *_, heading, names, _, first, second = flexswitch("inspect", trained_file).out.splitlines()
    assert heading.strip() == "against the fine-tuned model"
    assert names.split() == [
        "on",
        "examples",
        "divergence",
        "before",
        "after",
        "agreement",
        "before",
        "after",
    ]
    before, after = record.before, record.after
    shares = [f"{100 * share:.1f} %" for share in (before.agreement, after.agreement)]
    expected = ["exemplars", "12", f"{before.divergence:g}", f"{after.divergence:g}", *shares]
    assert first.split() == " ".join(expected).split()
    assert second.split()[:4] == [
        "held", "out", "8", f"{before.held_out_divergence:g}",
    ]  # fmt: skip
    document = json.loads(flexswitch("inspect", trained_file, "--json").out)
    assert document["training"] == json.loads(record.model_dump_json())


@pytest.mark.deep
def test_inspect_plots_the_training(trained_file: Path, flexswitch: Runner, tmp_path: Path) -> None:
    plot = tmp_path / "learning.png"
    assert flexswitch("inspect", trained_file, "--plot", plot).status == 0
    assert plot.read_bytes().startswith(PNG)
    outcome = flexswitch("inspect", trained_file, "--plot", plot)
    assert (outcome.status, outcome.error) == (
        1,
        f"{plot}: exists already; give another output, or --overwrite to replace it",
    )
    assert flexswitch("inspect", trained_file, "--plot", plot, "--overwrite").status == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--overwrite",), "--overwrite replaces the PNG of --plot; give that too"),
        (("--storage", "--plot", "{folder}/a.png"), "give one of --storage and --plot"),
    ],
)
@pytest.mark.deep
def test_inspect_takes_no_option_that_would_do_nothing(
    trained_file: Path, flexswitch: Runner, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    outcome = flexswitch("inspect", trained_file, *(word.format(folder=tmp_path) for word in more))
    assert (outcome.status, outcome.error) == (2, message)
    assert files_below(tmp_path) == []


def test_an_artifact_without_training_has_no_plot(text: Toy, flexswitch: Runner, tmp_path: Path) -> None:
    for path in (text.zoo.parent / "birds.fsw", text.zoo, text.base):
        outcome = flexswitch("inspect", path, "--plot", tmp_path / "a.png")
        assert (outcome.status, outcome.error) == (
            2,
            f"--plot: {path} has no training record; artifacts of methods that learn have one",
        )
    assert files_below(tmp_path) == []


@pytest.mark.deep
def test_a_zoo_keeps_the_size_that_was_asked_for_to_the_byte(
    trained_file: Path, text: Toy, flexswitch: Runner, tmp_path: Path
) -> None:
    assert flexswitch("pack", trained_file, "-o", tmp_path / "zoo").status == 0
    packed = task_file(tmp_path / "zoo", "birds")
    assert packed.read_bytes() == trained_file.read_bytes()
    assert flexswitch("verify", tmp_path / "zoo", "--base", text.base).status == 0
    command = ("eval", tmp_path / "zoo", "--base", text.base, "--data", text.data, "--methods", "flexswitch")
    row = json.loads(flexswitch(*command, "--json").out)["methods"]["flexswitch"]
    assert row["bytes_per_task"] == trained_file.stat().st_size <= 4000
