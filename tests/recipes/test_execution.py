"""What steps need of a machine, what they leave, and what interrupts them."""

import json
import multiprocessing
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.recipes.digests import Digests
from flexswitch.recipes.recipe import Needs
from flexswitch.recipes.run import alone
from flexswitch.recipes.schedule import Room
from flexswitch.recipes.shares import read_share
from flexswitch.recipes.versions import differences

RECIPE = """
version: 1
defaults: {base: base.safetensors}
steps:
  - name: compress {task}
    command: compress
    foreach: {task: [red, blue]}
    inputs: ["{task}.safetensors"]
    needs: {cpus: 64, memory: 900GB}
    options: {output: "out/{task}.fsw"}
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXSWITCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.deep
def test_a_step_that_needs_more_than_there_is_runs_alone(models, flexswitch):
    (models / "r.yaml").write_text(RECIPE)
    outcome = flexswitch("run", "r.yaml", "--jobs", "2", "--json")
    assert outcome.status == 0, outcome.err
    assert [step["status"] for step in json.loads(outcome.out)["steps"]] == ["done", "done"]
    assert multiprocessing.active_children() == []


@pytest.mark.deep
@pytest.mark.parametrize("most", [0, 50, 100, 600])
def test_a_run_that_cannot_write_leaves_nothing_half_written_and_goes_on_later(models, flexswitch, most):
    (models / "r.yaml").write_text(RECIPE.replace("cpus: 64, memory: 900GB", "cpus: 1"))
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    words = [sys.executable, "-m", "flexswitch.cli", "run", "r.yaml"]
    run = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert "could not be written: File too large; the partial output was removed" in last
    left = [name for name in map(str, models.rglob("*")) if "partial" in name]
    assert left == []
    assert flexswitch("run", "r.yaml").status == 0
    assert flexswitch("run", "r.yaml", "--check").status == 0


def test_room_is_taken_and_given_back():
    room, needs = Room(4, 1, 10_000_000_000), Needs(cpus=3, gpus=1, memory="8GB")
    assert room.holds(needs)
    room.take(needs, 1)
    assert not room.holds(needs)
    assert room.holds(Needs(cpus=1))
    room.take(needs, -1)
    assert room == Room(4, 1, 10_000_000_000)


def test_a_digest_covers_contents_and_names_and_no_hidden_files(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "sub" / "b").write_text("2")
    before = Digests().of(str(folder))
    (folder / ".cache").write_text("3")
    assert Digests().of(str(folder)) == before
    (folder / "sub" / "b").rename(folder / "sub" / "c")
    assert Digests().of(str(folder)) != before
    assert Digests().of(str(tmp_path / "nothing")) is None


def test_a_file_that_changes_at_once_has_another_digest_though_its_size_is_the_same(tmp_path):
    digests, file = Digests(), tmp_path / "a"
    found = set()
    for number in range(10):
        file.write_text(str(number))
        found.add(digests.of(str(file)))
    assert len(found) == 10


def test_a_cache_that_is_no_database_is_ignored(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "files.sqlite").write_text("no database " * 100)
    (tmp_path / "a").write_text("1")
    assert len(Digests().of(str(tmp_path / "a"))) == 64


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("2/3", {}, (2, 3)),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "2"},
            (4, 4),
        ),
        ("auto", {"SKYPILOT_JOB_RANK": "0", "SKYPILOT_NUM_JOBS": "4"}, (1, 4)),
    ],
)
def test_a_share_comes_from_the_option_or_the_environment(monkeypatch, text, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read_share(text) == expected


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "auto"])
def test_a_wrong_share_is_refused(text):
    with pytest.raises(UsageError, match="--shard"):
        read_share(text)


def test_versions_that_differ_are_named():
    assert differences({"torch": "2.1", "a": "1"}, {"torch": "2.2", "a": "1"}) == "torch 2.1 then, 2.2 now"


def test_two_runs_at_once_are_refused(models, flexswitch):
    (models / "r.yaml").write_text(RECIPE)
    with alone(Path("r.yaml"), None):
        outcome = flexswitch("run", "r.yaml")
        assert (outcome.status, outcome.error) == (
            1,
            "r.yaml: another run of it is going on; wait for its end",
        )
        with pytest.raises(InputError), alone(Path("r.yaml"), None):
            pass
