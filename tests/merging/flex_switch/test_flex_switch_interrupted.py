"""A training that is interrupted leaves nothing, or continues from where it was."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support.commands import files_below
from support.compressing import TRAIN, Compress
from support.tiny_models import Toy

from flexswitch.codecs.format.training_file import Arrays, TrainingFile

LONG = ("--checkpoint-every", 2, "--set", "steps=60")


@contextmanager
def interrupt_once_written() -> Iterator[None]:
    """Sends this process the signal of Ctrl-C as soon as a training has written its state."""
    write = TrainingFile.write

    def write_and_interrupt(file: TrainingFile, step: int, arrays: Callable[[], Arrays]) -> None:
        write(file, step, arrays)
        if step % file.every == 0:
            signal.raise_signal(signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingFile, "write", write_and_interrupt)
            yield
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.deep
def test_an_interrupted_training_continues_and_ends_in_the_same_bytes(compress: Compress) -> None:
    kept = compress.output.with_name("birds.fsw.training")
    for _ in range(2):
        with interrupt_once_written():
            outcome = compress.train(*LONG)
        assert outcome.status == 130
        assert outcome.err.splitlines()[-2:] == [
            f"flexswitch: the training is kept in {kept}; the same command continues it",
            "flexswitch: interrupted; nothing half-written is left",
        ]
        assert compress.left() == ["birds.fsw.training"]
    assert compress.train(*LONG).status == 0
    assert compress.left() == ["birds.fsw"]
    continued = compress.output.read_bytes()
    assert compress.train("--set", "steps=60", "--overwrite").status == 0
    assert compress.output.read_bytes() == continued


@pytest.mark.deep
def test_another_training_does_not_continue_from_it(compress: Compress) -> None:
    with interrupt_once_written():
        compress.train(*LONG)
    outcome = compress.train(*LONG, "--set", "seed=1")
    assert outcome.status == 1
    assert outcome.error.startswith(f"{compress.output}.training: belongs to a ")
    assert "training with other inputs or settings" in outcome.error
    assert compress.left() == ["birds.fsw.training"]


@pytest.mark.deep
def test_a_signal_in_the_middle_of_the_steps_ends_it_with_status_130(text: Toy, tmp_path: Path) -> None:
    words = ["compress", text.finetuned["birds"], "--base", text.base, "-o", tmp_path / "birds.fsw", *TRAIN]
    words += ["--exemplars", text.data, "--per-task", "12", "--set", "steps=1000", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flexswitch.cli", *map(str, words)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    assert process.stderr is not None
    while not process.stderr.readline().startswith("flexswitch: step 50 of 1000: "):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert (process.returncode, rest.splitlines()[-1]) == (
        130,
        "flexswitch: interrupted; nothing half-written is left",
    )
    assert files_below(tmp_path) == []
