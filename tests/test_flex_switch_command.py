"""`compress --method flexswitch`, and what other commands make of it, on tiny models."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Outcome, Runner, files_below
from tiny_models import Toy, image_toy, text_toy

from flexswitch.codecs.container import open_artifact
from flexswitch.merging.learning.learn import Progress

LEARN = ("--method", "flexswitch", "--target-size", "4KB", "--set", "steps=6", "--set", "least=8")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return text_toy(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return image_toy(tmp_path_factory.mktemp("image"))


class Compress:
    """Compresses the task birds into a folder of its own."""

    def __init__(self, flexswitch: Runner, toy: Toy, folder: Path) -> None:
        self._flexswitch = flexswitch
        self._toy = toy
        self.output = folder / "birds.fsw"

    def __call__(self, *more: object, settings: tuple[str, ...] = LEARN) -> Outcome:
        inputs = ("compress", self._toy.finetuned["birds"], "--base", self._toy.base, "-o", self.output)
        return self._flexswitch(*inputs, *settings, *more)

    def learn(self, *more: object) -> Outcome:
        return self("--exemplars", self._toy.data, "--per-task", 12, *more)

    def left(self) -> list[str]:
        return files_below(self.output.parent)


@pytest.fixture
def compress(flexswitch: Runner, text: Toy, tmp_path: Path) -> Compress:
    return Compress(flexswitch, text, tmp_path)


@pytest.fixture(scope="module")
def learned(text: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that was learned without a break."""
    output = tmp_path_factory.mktemp("learned") / "birds.fsw"
    words = ["compress", text.finetuned["birds"], "--base", text.base, "-o", output, *LEARN, "-q"]
    words += ["--exemplars", text.data, "--per-task", "12"]
    command = [sys.executable, "-m", "flexswitch.cli", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return output


# --- learned ----------------------------------------------------------------------------------------------


def test_a_text_classifier_is_learned_at_the_size_asked_for(compress: Compress) -> None:
    outcome = compress.learn()
    assert outcome.status == 0
    size, header = compress.output.stat().st_size, open_artifact(compress.output).header
    assert 0.9 * 4000 < size <= 4000
    assert header.learning is not None
    assert (header.learning.exemplars, header.learning.held_out) == (12, 8)
    assert header.learning.after.divergence < header.learning.before.divergence
    assert header.learning.curve[-1][0] == 6
    first, second = outcome.out.splitlines()
    assert first.startswith(f"{compress.output}: task 'birds' by flexswitch, kept ")
    numbers = re.fullmatch(
        r"learned from 12 exemplars: divergence from the fine-tuned model (\S+) → (\S+), the same answer to "
        r"(\S+)%; of 8 held out: \S+, \S+%",
        second,
    )
    assert numbers is not None
    assert float(numbers[1]) == header.learning.before.divergence
    assert float(numbers[2]) == header.learning.after.divergence
    assert compress.left() == ["birds.fsw"]


def test_an_image_classifier_is_learned_from_its_task_vector_and_its_checkpoint_alike(
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
            *LEARN,
        )
        learned = flexswitch(*command, "--exemplars", image.data, "--per-task", 10, "--set", "steps=20")
        assert learned.status == 0
    assert (tmp_path / "one.fsw").read_bytes() == (tmp_path / "two.fsw").read_bytes()


def test_the_bytes_depend_on_neither_the_process_nor_the_threads(compress: Compress, learned: Path) -> None:
    for jobs in (1, 2):
        assert compress.learn("--jobs", jobs, "--overwrite").status == 0
        assert compress.output.read_bytes() == learned.read_bytes()


def test_the_exemplars_are_those_of_the_task_s_name(compress: Compress, text: Toy) -> None:
    assert compress.learn("--name", "tools", "--set", "steps=30").status == 0
    assert open_artifact(compress.output).header.name == "tools"
    outcome = compress.learn("--name", "rivers", "--overwrite")
    assert (outcome.status, outcome.error) == (
        1,
        f"{text.data}: has no train file of the task 'rivers'; expected rivers.train with one of .jsonl.gz, "
        ".jsonl, .csv, .parquet, .npz (it has: birds, cities, tools)",
    )


def test_json_and_quiet_say_the_result_alone(compress: Compress) -> None:
    outcome = compress.learn("--json", "--quiet")
    assert outcome.err == ""
    document = json.loads(outcome.out)
    assert document["bytes"] == compress.output.stat().st_size
    assert document["settings"]["target_size"] == "4KB"
    learning = document["learning"]
    assert list(learning) == ["exemplars", "exemplars_sha256", "held_out", "before", "after"]
    assert learning["after"]["divergence"] < learning["before"]["divergence"]


def test_without_a_terminal_every_50_steps_are_told(compress: Compress) -> None:
    outcome = compress.learn("--set", "steps=60")
    stands = r"loss \d\S*, \d+\.\d{3} bits a parameter"
    lines = [line for line in outcome.err.splitlines() if "step" in line]
    assert len(lines) == 2
    assert re.fullmatch(rf"flexswitch: step 50 of 60: {stands}, (\d+ min )?\d+ s left", lines[0])
    assert re.fullmatch(rf"flexswitch: step 60 of 60: {stands}", lines[1])


def test_features_are_compared_without_answers(compress: Compress, flexswitch: Runner) -> None:
    outcome = compress.learn("--set", "objective=mse", "--set", "steps=200")
    assert outcome.status == 0
    assert "%" not in outcome.out.splitlines()[1]
    assert flexswitch("inspect", compress.output).out.splitlines()[-1].split()[-2:] == ["–", "–"]


def test_the_data_free_allocation_takes_no_examples_and_leaves_no_record(
    compress: Compress, flexswitch: Runner
) -> None:
    outcome = compress("--set", "objective=none")
    assert (outcome.status, len(outcome.out.splitlines())) == (0, 1)
    assert open_artifact(compress.output).header.learning is None


# --- interrupted ------------------------------------------------------------------------------------------


def interrupted_at(step: int) -> Callable[..., Callable[[Progress], None]]:
    """Returns what stands for `hearer` and interrupts a step as Ctrl-C does."""

    def heard(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return lambda on_step, parameters: heard


def test_an_interrupt_leaves_nothing(compress: Compress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexswitch.cli.compress.hearer", interrupted_at(4))
    outcome = compress.learn()
    assert outcome.status == 130
    assert outcome.err.splitlines()[-2:] == [
        f"flexswitch: compressing 39 tensors of {compress._toy.finetuned['birds']}",
        "flexswitch: interrupted; nothing half-written is left",
    ]
    assert compress.left() == []


def test_a_learning_that_was_interrupted_goes_on_and_ends_in_the_same_bytes(
    compress: Compress, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = compress.output.with_name("birds.fsw.learning")
    for step in (4, 6):  # after two steps of the first run and four of the second
        monkeypatch.setattr("flexswitch.cli.compress.hearer", interrupted_at(step))
        outcome = compress.learn("--checkpoint-every", 2)
        assert outcome.status == 130
        assert outcome.err.splitlines()[-2:] == [
            f"flexswitch: the learning is kept in {kept}; the same command goes on from there",
            "flexswitch: interrupted; nothing half-written is left",
        ]
        assert compress.left() == ["birds.fsw.learning"]
    heard: list[int] = []
    monkeypatch.setattr(
        "flexswitch.cli.compress.hearer",
        lambda on_step, parameters: lambda progress: heard.append(progress.step),
    )
    assert compress.learn("--checkpoint-every", 2).status == 0
    assert heard == [5, 6]
    assert compress.output.read_bytes() == learned.read_bytes()
    assert compress.left() == ["birds.fsw"]


def test_another_learning_does_not_go_on_from_it(compress: Compress, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr("flexswitch.cli.compress.hearer", interrupted_at(4))
        compress.learn("--checkpoint-every", 2)
    outcome = compress.learn("--checkpoint-every", 2, "--set", "seed=1")
    assert (outcome.status, outcome.error) == (
        1,
        f"{compress.output}.learning: belongs to a learning of other inputs or with other settings; repeat "
        "that one, or delete the file",
    )
    assert compress.left() == ["birds.fsw.learning"]


def test_a_signal_in_the_middle_of_the_steps_ends_it_with_status_130(text: Toy, tmp_path: Path) -> None:
    words = ["compress", text.finetuned["birds"], "--base", text.base, "-o", tmp_path / "birds.fsw", *LEARN]
    words += ["--exemplars", text.data, "--per-task", "12", "--set", "steps=1000000", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flexswitch.cli", *map(str, words)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stderr is not None
    while not process.stderr.readline().startswith("flexswitch: step 50 of 1000000: "):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert (process.returncode, rest.splitlines()[-1]) == (
        130,
        "flexswitch: interrupted; nothing half-written is left",
    )
    assert files_below(tmp_path) == []


# --- wrong usage ------------------------------------------------------------------------------------------

FLEX, SIGNS = ("--method", "flexswitch"), ("--method", "t-switch")
NONE = (*FLEX, "--set", "objective=none")
UNLEARNED = "does not learn from examples; those that do: flexswitch"


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
            "target size '4XB': expected bytes (400KB), a share of float32 (0.5%) or bits a parameter (0.16bpp)",
        ),
        (
            (*NONE, "--set", "target_size=lots"),
            "target size 'lots': expected bytes (400KB), a share of float32 (0.5%) or bits a parameter (0.16bpp)",
        ),
        ((*SIGNS, "--exemplars", "d"), f"--exemplars: t-switch {UNLEARNED}"),
        ((*SIGNS, "--device", "cpu"), f"--device: t-switch {UNLEARNED}"),
        ((*SIGNS, "--adapter", "hf-encoder"), f"--adapter: t-switch {UNLEARNED}"),
        (
            (*SIGNS, "--per-task", "9", "--checkpoint-every", "5"),
            f"--per-task, --checkpoint-every: t-switch {UNLEARNED}",
        ),
        ((*NONE, "--exemplars", "d"), f"--exemplars: flexswitch with objective=none {UNLEARNED}"),
        (
            FLEX,
            "flexswitch learns from examples: give --exemplars DIR, or learn from none with --set objective=none",
        ),
        ((*FLEX, "--exemplars", "{data}", "--device", "gpu"), "--device: no device is named 'gpu'; did you mean 'cpu'? (known: cpu, cuda)"),
        (
            (*FLEX, "--exemplars", "{data}", "--adapter", "hf-encode"),
            "no adapter is named 'hf-encode'; did you mean 'hf-encoder'? (known: hf-sequence-classification, "
            "hf-image-classification, hf-encoder, hf-causal-lm)",
        ),
        (
            (*FLEX, "--exemplars", "{data}", "--set", "lambda=1", "--target-size", "4KB"),
            "lambda=1.0: expected a number above 0, an objective, and no target size",
        ),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_or_is_wrong_ends_with_status_2(
    compress: Compress, text: Toy, arguments: tuple[str, ...], message: str
) -> None:
    outcome = compress(settings=tuple(word.format(data=text.data) for word in arguments))
    assert (outcome.status, outcome.error) == (2, message)
    assert compress.left() == []


@pytest.fixture
def vector(flexswitch: Runner, text: Toy, tmp_path: Path) -> Path:
    path = tmp_path / "birds.tv.safetensors"
    assert flexswitch("extract", text.base, text.finetuned["birds"], "-o", path).status == 0
    return path


def test_a_task_vector_alone_can_not_be_learned_from(vector: Path, flexswitch: Runner, text: Toy) -> None:
    output = vector.with_name("birds.fsw")
    outcome = flexswitch("compress", vector, "-o", output, *LEARN, "--exemplars", text.data)
    assert (outcome.status, outcome.error) == (
        2,
        "flexswitch runs the model to learn: give --base BASE, or --set objective=none",
    )


@pytest.mark.parametrize("method", [LEARN, SIGNS])
def test_a_task_vector_of_another_base_is_refused(
    vector: Path, flexswitch: Runner, text: Toy, image: Toy, method: tuple[str, ...]
) -> None:
    command = ("compress", vector, "--base", image.base, "-o", vector.with_name("birds.fsw"), *method)
    outcome = flexswitch(*command, *(("--exemplars", text.data) if method is LEARN else ()))
    assert outcome.status == 1
    assert outcome.error.startswith(f"{image.base}: is not the base of {vector}: its sampled fingerprint is ")


def test_tensors_are_chosen_where_the_task_vector_is_made(
    vector: Path, flexswitch: Runner, text: Toy
) -> None:
    command = ("compress", vector, "--base", text.base, "-o", vector.with_name("birds.fsw"), *SIGNS)
    outcome = flexswitch(*command, "--include", "*")
    assert (outcome.status, outcome.error) == (
        2,
        "--include, --exclude and --on-resize need a checkpoint and --base; give them to `extract` instead",
    )


def test_bare_weights_can_not_be_run(models: Path, flexswitch: Runner, text: Toy) -> None:
    before = files_below(models)
    command = ("compress", "red.safetensors", "--base", "base.safetensors", "-o", "birds.fsw", *LEARN)
    outcome = flexswitch(*command, "--exemplars", text.data)
    assert (outcome.status, outcome.error) == (
        1,
        "base.safetensors: has no config.json with a 'model_type'; give a model directory",
    )
    assert files_below(models) == before


# --- what the user decides --------------------------------------------------------------------------------


def test_too_few_exemplars_are_refused(compress: Compress, text: Toy) -> None:
    outcome = compress("--exemplars", text.data, settings=(*FLEX, "--target-size", "4KB"))
    assert (outcome.status, outcome.error) == (
        1,
        f"{text.data / 'birds.train.jsonl.gz'}: 20 exemplars, expected 32 or more to learn from; give more, or "
        "allow fewer with --set least=20, or learn from none with --set objective=none",
    )
    assert compress.left() == []


def test_a_learning_that_does_not_help_is_refused(
    compress: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexswitch.merging.learning.lesson.Lesson.loss", lambda lesson, each: 0.25)
    outcome = compress.learn()
    assert (outcome.status, outcome.error) == (
        1,
        f"{compress._toy.finetuned['birds']}: learning did not help: the loss on the exemplars is 0.25, "
        "and was 0.25 before; take more steps or exemplars, or the data-free allocation with "
        "--set objective=none",
    )
    assert compress.left() == []


def test_a_size_below_the_head_s_is_refused(compress: Compress) -> None:
    outcome = compress.learn("--set", "seed=0", "--target-size", "300")
    assert outcome.status == 1
    assert re.fullmatch(
        rf"{compress._toy.finetuned['birds']}: target size 300 is 300 bytes, and the task's own tensors \(its "
        r"head\) with the header take [\d,]+ of them; ask for more than that",
        outcome.error,
    )


# --- inspect and pack -------------------------------------------------------------------------------------


def test_inspect_tells_how_near_it_came(learned: Path, flexswitch: Runner) -> None:
    record = open_artifact(learned).header.learning
    assert record is not None
    *_, heading, names, first, second = flexswitch("inspect", learned).out.splitlines()
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
    shares = [f"{share:.1%}" for share in (before.agreement, after.agreement)]
    assert first.split() == ["exemplars", "12", f"{before.divergence:g}", f"{after.divergence:g}", *shares]
    assert second.split()[:4] == [
        "held", "out", "8", f"{before.held_out_divergence:g}",
    ]  # fmt: skip
    document = json.loads(flexswitch("inspect", learned, "--json").out)
    assert document["learning"] == json.loads(record.model_dump_json())


def test_inspect_draws_the_way_there(learned: Path, flexswitch: Runner, tmp_path: Path) -> None:
    plot = tmp_path / "learning.png"
    assert flexswitch("inspect", learned, "--plot", plot).status == 0
    assert plot.read_bytes().startswith(PNG)
    outcome = flexswitch("inspect", learned, "--plot", plot)
    assert (outcome.status, outcome.error) == (
        1,
        f"{plot}: exists already; give another output, or --overwrite to replace it",
    )
    assert flexswitch("inspect", learned, "--plot", plot, "--overwrite").status == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--overwrite",), "--overwrite replaces the PNG of --plot; give that too"),
        (("--storage", "--plot", "{folder}/a.png"), "give one of --storage and --plot"),
    ],
)
def test_inspect_takes_no_option_that_would_do_nothing(
    learned: Path, flexswitch: Runner, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    outcome = flexswitch("inspect", learned, *(word.format(folder=tmp_path) for word in more))
    assert (outcome.status, outcome.error) == (2, message)
    assert files_below(tmp_path) == []


def test_what_was_not_learned_has_no_way_to_draw(text: Toy, flexswitch: Runner, tmp_path: Path) -> None:
    for path in (text.zoo.parent / "birds.fsw", text.zoo, text.base):
        outcome = flexswitch("inspect", path, "--plot", tmp_path / "a.png")
        assert (outcome.status, outcome.error) == (
            2,
            f"--plot: {path} has no record of learning; artifacts by a method that learns have",
        )
    assert files_below(tmp_path) == []


def test_a_zoo_keeps_the_size_that_was_asked_for_to_the_byte(
    learned: Path, text: Toy, flexswitch: Runner, tmp_path: Path
) -> None:
    assert flexswitch("pack", learned, "-o", tmp_path / "zoo").status == 0
    packed = tmp_path / "zoo" / "tasks" / "birds.fsw"
    assert packed.read_bytes() == learned.read_bytes()
    assert flexswitch("verify", tmp_path / "zoo", "--base", text.base).status == 0
    command = ("eval", tmp_path / "zoo", "--base", text.base, "--data", text.data, "--methods", "flexswitch")
    row = json.loads(flexswitch(*command, "--json").out)["methods"]["flexswitch"]
    assert row["bytes_per_task"] == learned.stat().st_size <= 4000
