"""Runs that are killed, on this machine and on a Ray cluster: each step is done once, and the bytes are the same."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support.commands import write_finetuned

TASKS = [f"t{number}" for number in range(12)]
RECIPE = f"""
version: 1
defaults: {{base: base.safetensors}}
steps:
  - name: "{{task}}"
    command: compress
    foreach: {{task: [{", ".join(TASKS)}]}}
    inputs: ["{{task}}.safetensors"]
    options: {{output: "out/{{task}}.fsw"}}
  - {{name: pack, command: pack, inputs: ["out/*.fsw"], options: {{output: zoo}}}}
  - {{name: verify, command: verify, inputs: [zoo]}}
"""
STEPS = [*TASKS, "pack", "verify"]


@pytest.fixture
def folder(models: Path) -> Path:
    base = load_file(models / "base.safetensors")
    for seed, task in enumerate(TASKS):
        write_finetuned(models / f"{task}.safetensors", base, seed)
    (models / "r.yaml").write_text(RECIPE)
    return models


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "flexswitch.cli", "run", "r.yaml", *words]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=heed
    )


def finished(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yields the names of steps as a run says that they are done."""
    for line in process.stderr or ():
        if ": done in " in line:
            yield line.split(": ")[2]


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the outputs and the lock."""
    files = [*(folder / "out").glob("*"), folder / "r.lock", *(folder / "zoo").rglob("*")]
    return {str(path): path.read_bytes() for path in files if path.is_file() and path.name != ".lock"}


def whole_run(folder: Path) -> dict[str, bytes]:
    """Returns what a run without interruption writes, and removes it."""
    with start() as process:
        assert sorted(finished(process)) == sorted(STEPS)
    found = contents(folder)
    remove(folder)
    return found


def remove(folder: Path) -> None:
    for path in (folder / "out", folder / "zoo", folder / "r.logs"):
        shutil.rmtree(path)
    (folder / "r.lock").unlink()


@pytest.mark.deep
def test_a_run_that_is_killed_five_times_does_each_step_once(folder: Path) -> None:
    expected, draw = whole_run(folder), random.Random(0)
    done: list[str] = []
    for _ in range(5):
        with start("--jobs", "2") as process:
            for name in finished(process):
                done.append(name)
                time.sleep(0.02 * draw.random())
                process.send_signal(signal.SIGKILL)
                break
    with start("--jobs", "2") as process:
        done += finished(process)
    assert process.returncode == 0
    # A step that was at work when its run was killed may have been finished all the same.
    assert len(done) == len(set(done))
    assert contents(folder) == expected
    assert not [*folder.rglob("*.step"), *folder.rglob("*.partial"), *folder.rglob("*.resume")]


@pytest.mark.deep
def test_an_interrupt_ends_the_workers_and_says_how_to_go_on(folder: Path) -> None:
    with start("--jobs", "2") as process:
        next(finished(process))
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read() if process.stderr else ""
    assert process.returncode == 130
    assert f"of {len(STEPS)} steps are done; the same command does the others" in rest
    assert (folder / "r.lock").exists()


@pytest.mark.deep
def test_a_cluster_that_loses_a_node_gives_the_same_bytes(folder: Path) -> None:
    pytest.importorskip("ray")
    expected = whole_run(folder)
    code = Path(__file__).with_name("ray_nodes.py")
    with subprocess.Popen(
        [sys.executable, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as nodes:
        assert nodes.stdin is not None
        assert nodes.stdout is not None
        address = nodes.stdout.readline().strip()
        with start("--on", "ray", "--address", address) as process:
            next(finished(process))
            print("lose one", file=nodes.stdin, flush=True)
            list(finished(process))
        nodes.stdin.close()
    assert process.returncode == 0
    assert contents(folder) == expected
