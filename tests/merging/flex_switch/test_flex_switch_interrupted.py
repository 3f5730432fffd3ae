"""A learning that is interrupted leaves nothing, or goes on from where it was."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.commands import files_below
from support.compressing import LEARN, Compress
from support.tiny_models import Toy

from flexswitch.merging.compression.plan import Progress


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
    kept = compress.output.with_name("birds.fsw.training")
    for step in (4, 6):  # after two steps of the first run and four of the second
        monkeypatch.setattr("flexswitch.cli.compress.hearer", interrupted_at(step))
        outcome = compress.learn("--checkpoint-every", 2)
        assert outcome.status == 130
        assert outcome.err.splitlines()[-2:] == [
            f"flexswitch: the training is kept in {kept}; the same command continues it",
            "flexswitch: interrupted; nothing half-written is left",
        ]
        assert compress.left() == ["birds.fsw.training"]
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
        f"{compress.output}.training: belongs to a training with other inputs or settings; repeat "
        "that one, or delete the file",
    )
    assert compress.left() == ["birds.fsw.training"]


def test_a_signal_in_the_middle_of_the_steps_ends_it_with_status_130(text: Toy, tmp_path: Path) -> None:
    words = ["compress", text.finetuned["birds"], "--base", text.base, "-o", tmp_path / "birds.fsw", *LEARN]
    words += ["--exemplars", text.data, "--per-task", "12", "--set", "steps=1000000", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flexswitch.cli", *map(str, words)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
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
