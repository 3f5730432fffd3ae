"""A step runs once: the lock says what is done, and another process count gives the same bytes."""

import errno
import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support.commands import write_finetuned
from support.killed_writers import kill, start_writer
from support.small_recipe import ALL, MORE, RECIPE, contents

from flexswitch.recipes.lock import StepFile, step_file, write_step_file
from flexswitch.recipes.plan import make_plan


def test_a_second_run_does_nothing_and_leaves_the_lock_as_it_is(run, models):
    assert run() == ALL
    before = contents(models)
    assert not list(models.glob("*.step*"))
    assert run() == []
    assert contents(models) == before


def test_the_lock_has_digests_and_figures_and_no_times_or_absolute_paths(run, models):
    run()
    lock = json.loads((models / "recipe.lock").read_text())
    record = lock["steps"]["compress red"]
    assert record["command"].startswith("flexswitch compress red.safetensors ")
    assert sorted(record["reads"]) == ["base.safetensors", "red.safetensors"]
    assert record["result"]["bits_per_parameter"] > 1
    assert record["versions"] == {"compress": 1, "t-switch": 1}
    assert list(record["environment"]) == ["zstandard"]
    assert str(models) not in (models / "recipe.lock").read_text()


def change_input(models):
    shutil.copy(models / "blue.safetensors", models / "red.safetensors")


def remove_output(models):
    (models / "red.fsw").unlink()


def damage_output(models):
    (models / "red.fsw").write_bytes(b"other")


def change_option(models):
    text = (models / "recipe.yaml").read_text()
    (models / "recipe.yaml").write_text(
        text.replace("options: {output: zoo}", "options: {output: zoo, effort: small}")
    )


def touch_input(models):
    (models / "red.safetensors").touch()


@pytest.mark.parametrize(
    ("change", "ran"),
    [
        (change_input, ["compress red", "pack", "verify"]),
        (remove_output, ["compress red"]),  # the same bytes as before: nothing behind it changes
        (damage_output, ["compress red"]),
        (touch_input, []),
    ],
)
def test_a_change_redoes_its_steps_alone(run, models, change, ran):
    run()
    change(models)
    assert run() == ran
    assert run() == []


def test_another_option_redoes_the_step_and_those_behind_it_only_if_its_bytes_differ(run, models):
    run()
    change_option(models)
    assert run()[0] == "pack"


def test_check_ends_with_status_4_until_all_is_as_the_lock_says(flexswitch, run, models):
    missing = flexswitch("run", "recipe.yaml", "--check")
    assert missing.status == 4
    assert "step 'compress red': it is new" in missing.error
    run()
    assert flexswitch("run", "recipe.yaml", "--check").status == 0
    damage_output(models)
    outcome = flexswitch("run", "recipe.yaml", "--check")
    assert outcome.status == 4
    assert "'compress red': red.fsw is not what it wrote (the same versions and processor)" in outcome.error


def test_frozen_refuses_other_inputs_and_accepts_missing_outputs(flexswitch, run, models):
    run()
    lock = (models / "recipe.lock").read_bytes()
    remove_output(models)
    assert run("--frozen") == ["compress red"]
    change_input(models)
    outcome = flexswitch("run", "recipe.yaml", "--frozen")
    assert (outcome.status, outcome.error) == (
        4, "--frozen: step 'compress red' is not as in the lock: red.safetensors changed",
    )  # fmt: skip
    assert (models / "recipe.lock").read_bytes() == lock


def test_a_step_with_another_name_is_done_and_the_lock_takes_the_name(flexswitch, run, recipe):
    run()
    before = json.loads(recipe.with_suffix(".lock").read_text())["steps"]
    recipe.write_text(RECIPE.replace("name: pack", "name: gather"))
    assert "'gather': it is new" in flexswitch("run", "recipe.yaml", "--check").error
    assert run() == []
    after = json.loads(recipe.with_suffix(".lock").read_text())["steps"]
    assert after == {"gather" if name == "pack" else name: record for name, record in before.items()}
    assert flexswitch("run", "recipe.yaml", "--check").status == 0


def test_a_step_that_was_killed_in_the_middle_runs_again(run, models):
    run()
    before = contents(models)
    (models / "recipe.lock").unlink()
    for step in make_plan(Path("recipe.yaml")).steps:
        write_step_file(
            step_file(step, Path("recipe.lock")), StepFile(command=step.line, reads={}, stamps="")
        )
    writer, left = start_writer(models / "red.fsw")
    kill(writer)
    assert left.exists()
    (models / "red.fsw.resume").write_text("of other inputs")
    assert run() == ALL
    assert contents(models) == before
    assert not [*models.glob(".*.partial"), *models.glob("*.resume"), *models.glob("*.step")]


def test_only_force_and_dry_run(flexswitch, run, models):
    outcome = flexswitch("run", "recipe.yaml", "--only", "pack")
    assert (outcome.status, outcome.error) == (
        1, "--only 'pack': waits for 'compress red', which is not done; give that too",
    )  # fmt: skip
    planned = json.loads(flexswitch("run", "recipe.yaml", "--dry-run", "--json").out)["steps"]
    assert [(step["runs"], step["reason"]) for step in planned] == [(True, "it is new")] * 4
    assert run("--only", "compress {task}") == ["compress red", "compress blue"]
    assert run() == ["pack", "verify"]
    before = contents(models)
    assert run("--force") == ALL
    assert contents(models) == before


def test_a_failure_stops_what_stands_on_it_and_keep_going_does_the_rest(flexswitch, recipe, models):
    (models / "red.safetensors").write_bytes(b"damaged")
    stopped = flexswitch("run", "recipe.yaml", "--json")
    statuses = [step["status"] for step in json.loads(stopped.out)["steps"]]
    assert (stopped.status, statuses) == (1, ["failed", "waiting", "waiting", "waiting"])
    going = flexswitch("run", "recipe.yaml", "--json", "--keep-going", "--report", "r.xml")
    statuses = [step["status"] for step in json.loads(going.out)["steps"]]
    assert (going.status, statuses) == (1, ["failed", "done", "waiting", "waiting"])
    suite = ElementTree.parse(models / "r.xml").getroot().find("testsuite")
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "4", "failures": "1", "skipped": "2",
    }  # fmt: skip
    assert "red.safetensors" in suite.find("testcase/failure").get("message")


def full_disk(path, lock):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_lock_that_cannot_be_written_hides_no_failed_step(flexswitch, recipe, models, monkeypatch):
    monkeypatch.setattr("flexswitch.recipes.run.write_lock", full_disk)
    (models / "red.safetensors").write_bytes(b"damaged")
    outcome = flexswitch("run", "recipe.yaml")
    assert outcome.status == 1
    assert outcome.error.startswith("recipe.yaml: step 'compress red': red.safetensors: ")
    assert outcome.error.endswith("; and the lock was not written: recipe.lock: No space left on device")


def test_without_a_failure_a_lock_that_cannot_be_written_is_the_error(
    flexswitch, recipe, models, monkeypatch
):
    monkeypatch.setattr("flexswitch.recipes.run.write_lock", full_disk)
    outcome = flexswitch("run", "recipe.yaml")
    assert (outcome.status, outcome.error) == (1, "recipe.lock: No space left on device")


def test_reports_of_a_run(flexswitch, run, models):
    assert run("--report", "r.md") == ALL
    lines = (models / "r.md").read_text().splitlines()
    assert lines[2].startswith("| step | task | bytes | bits per parameter |")
    assert lines[4].startswith("| compress red | red | ")
    assert "| met | done |" in lines[6]
    run("--report", "r.json")
    report = json.loads((models / "r.json").read_text())
    assert [step["status"] for step in report["steps"]] == ["unchanged"] * 4
    assert flexswitch("run", "recipe.yaml", "--report", "r.txt").status == 2


def test_shares_and_then_the_whole_give_what_one_run_gives(run, models):
    run()
    whole = contents(models)
    for path in [*models.glob("*.fsw"), models / "recipe.lock"]:
        path.unlink()
    shutil.rmtree(models / "zoo")
    assert run("--shard", "2/2") == ["compress blue"]
    assert not (models / "recipe.lock").exists()
    assert run("--shard", "1/2") == ["compress red"]
    assert run() == ["pack", "verify"]
    assert contents(models) == whole


@pytest.mark.deep
def test_two_processes_give_what_one_gives(run, models):
    run()
    one = contents(models)
    for path in [*models.glob("*.fsw"), models / "recipe.lock"]:
        path.unlink()
    shutil.rmtree(models / "zoo")
    assert run("--jobs", "2") == ALL
    assert contents(models) == one


def test_a_change_of_a_zoo_starts_from_the_zoo_as_it_was_packed(run, recipe, models):
    write_finetuned(models / "green.safetensors", load_file(models / "base.safetensors"), seed=3)
    recipe.write_text(RECIPE + MORE)
    (models / "more").mkdir()
    assert run() == [*ALL, "compress green", "add"]
    before = contents(models)
    assert run() == []
    write_finetuned(models / "green.safetensors", load_file(models / "base.safetensors"), seed=4)
    assert run() == ["pack", "compress green", "add"]
    write_finetuned(models / "green.safetensors", load_file(models / "base.safetensors"), seed=3)
    assert run() == ["pack", "compress green", "add"]
    assert contents(models) == before
