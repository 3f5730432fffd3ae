"""An output that cannot be written ends with one line that says what to do, and leaves nothing behind."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.commands import files_below
from support.tiny_models import contents

from flexswitch.codecs.format.safetensors_file import SafetensorsWriter
from flexswitch.codecs.format.zoo_writer import zoo_writer

COMPRESS = ("--base", "base.safetensors", "-o", "out.fsw", "--method", "t-switch")


def test_an_output_that_exists(zoo, fails):
    shutil.copyfile(zoo / "red.fsw", zoo / "out.fsw")
    message = "out.fsw: exists already; give another output, or --overwrite to replace it"
    fails(zoo, 1, message, "compress", "red.safetensors", *COMPRESS)
    fails(zoo, 1, message.replace("out.fsw", "zoo"), "pack", "red.fsw", "-o", "zoo")


def test_a_folder_of_something_else_is_not_overwritten(zoo, fails):
    (zoo / "photos").mkdir()
    (zoo / "photos" / "cat.jpg").write_text("meow")
    message = "photos: holds {}, so --overwrite does not replace it; give another output"
    fails(zoo, 1, message.format("no zoo.json"), "pack", "red.fsw", "-o", "photos", "--overwrite")
    merge = ("merge", "zoo", "--base", "base.safetensors", "-o", "photos", "--task", "red", "--overwrite")
    fails(zoo, 1, message.format("no flexswitch.json that lists what flexswitch wrote"), *merge)


@pytest.mark.parametrize("output", [".", "zoo/.."])
def test_an_output_that_has_no_name(zoo, fails, output):
    message = f"{output}: is no name of an output; give the name of a file or folder"
    fails(zoo, 1, message, "pack", "red.fsw", "-o", output, "--overwrite")


def test_an_output_folder_that_is_missing(models, fails):
    command = (
        "compress",
        "red.safetensors",
        "--base",
        "base.safetensors",
        "-o",
        "a/b.fsw",
        "--method",
        "t-switch",
    )
    fails(models, 1, "a/b.fsw: the folder a does not exist; make it first", *command)


def test_a_disk_that_is_full(zoo, fails, monkeypatch):
    def full(self, *arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SafetensorsWriter, "add", full)
    message = "{}: could not be written: No space left on device; the partial output was removed"
    fails(zoo, 1, message.format("out.fsw"), "compress", "red.safetensors", *COMPRESS)
    extract = ("extract", "base.safetensors", "red.safetensors", "-o", "out.tv.safetensors")
    fails(zoo, 1, message.format("out.tv.safetensors"), *extract)
    merge = ("merge", "zoo", "--base", "base.safetensors", "-o", "merged", "--task", "red")
    fails(zoo, 1, message.format("merged"), *merge)
    fails(zoo, 1, message.format("new"), "pack", "red.fsw", "-o", "new")
    fails(zoo, 1, message.format("zoo"), "pack", "red.fsw", "-o", "zoo", "--add", "--overwrite")


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (("compress", "red.safetensors", *COMPRESS), "out.fsw"),
        (("pack", "red.fsw", "-o", "zoo", "--add", "--overwrite", "--codec", "raw"), "zoo"),
    ],
)
def test_a_write_that_the_system_refuses(zoo, command, output):
    before = contents(zoo)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200, 200))
    words = [sys.executable, "-m", "flexswitch.cli", *command]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}  # what is cut at the limit would stay in the cache
    run = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit, env=env)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    message = f"{output}: could not be written: File too large; the partial output was removed"
    assert last == f"flexswitch: error: {message}"
    assert contents(zoo) == before


def test_a_zoo_that_another_process_writes_to(zoo, flexswitch):
    with zoo_writer(Path("zoo")):
        outcome = flexswitch("pack", "-o", "zoo", "--remove", "red", "--lock-timeout", "0.1")
    assert outcome.status == 1
    assert outcome.err.splitlines()[-2:] == [
        "flexswitch: waiting for another writer of zoo",
        "flexswitch: error: zoo: another process still writes to it after 0.1 seconds; run the command again "
        "when it has ended, or give a longer --lock-timeout",
    ]
    assert flexswitch("pack", "-o", "zoo", "--remove", "red", "--lock-timeout", "10").status == 0


heed_interrupts = partial(
    signal.signal, signal.SIGINT, signal.SIG_DFL
)  # a job in the background ignores them


def interrupt(command, folder):
    """Starts a command, interrupts it when it has said what it does, and returns its status and stderr."""
    words = [sys.executable, "-m", "flexswitch.cli", *command]
    process = subprocess.Popen(
        words,
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    return process.returncode, first, rest


@pytest.mark.deep
def test_an_interrupt_in_the_middle_of_compress_and_pack(tmp_path):
    generator = np.random.default_rng(0)
    base = {f"layer.{number}": generator.random((2048, 1024), np.float32) for number in range(8)}
    save_file(base, tmp_path / "base.safetensors")
    for task in ("red", "blue"):
        tuned = {
            name: weights + np.float32(0.001) * generator.random(weights.shape, np.float32)
            for name, weights in base.items()
        }
        save_file(tuned, tmp_path / f"{task}.safetensors")
    before = files_below(tmp_path)
    status, first, rest = interrupt(["compress", "red.safetensors", *COMPRESS], tmp_path)
    assert first == "flexswitch: compressing 8 tensors of red.safetensors\n"
    assert (status, rest) == (130, "flexswitch: interrupted; nothing half-written is left\n")
    assert files_below(tmp_path) == before
    for task in ("red", "blue"):
        command = ["compress", f"{task}.safetensors", "--base", "base.safetensors", "-o", f"{task}.fsw"]
        subprocess.run(
            [sys.executable, "-m", "flexswitch.cli", *command, "--method", "t-switch"],
            cwd=tmp_path,
            check=True,
        )
    before = files_below(tmp_path)
    status, first, rest = interrupt(["pack", "red.fsw", "blue.fsw", "-o", "zoo"], tmp_path)
    assert first == "flexswitch: packing 2 artifacts into zoo\n"
    assert (status, rest) == (130, "flexswitch: interrupted; nothing half-written is left\n")
    assert files_below(tmp_path) == before
