"""The commands chained as a user types them, on small real files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.commands import files_below
from support.zoo_files import task_file

SUBCOMMANDS = (
    "extract", "compress", "pack", "index", "route", "merge", "eval", "inspect", "verify", "methods", "run",
)  # fmt: skip


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_every_command_has_help_with_an_example(flexswitch, command):
    outcome = flexswitch(command, "--help")
    assert outcome.status == 0
    examples = [
        line for line in outcome.out.splitlines() if line.startswith(f"  Example: flexswitch {command} ")
    ]
    assert examples
    assert outcome.out.splitlines()[outcome.out.splitlines().index(examples[-1]) + 1] == ""  # on one line


def test_extract_compress_pack_and_merge_restore_a_task(models, flexswitch):
    extract = ("extract", "base.safetensors", "red.safetensors", "-o", "red.tv.safetensors")
    assert json.loads(flexswitch(*extract, "--json").out)["parameters"] == 40 * 16 + 24 * 16 + 24
    compress = ("compress", "red.tv.safetensors", "-o", "red.fsw", "--method", "p-discard", "--set", "drop=0")
    document = json.loads(flexswitch(*compress, "--json").out)
    assert document["task"] == "red"
    assert document["settings"] == {"drop": 0.0}
    assert document["bits_per_parameter"] == 8 * (models / "red.fsw").stat().st_size / document["parameters"]
    assert flexswitch("pack", "red.fsw", "-o", "zoo").status == 0
    merge = ("merge", "zoo", "--base", "base.safetensors", "-o", "restored", "--task", "red")
    assert flexswitch(*merge).status == 0
    restored, tuned = load_file("restored/model.safetensors"), load_file("red.safetensors")
    assert sorted(restored) == sorted(tuned)
    for name, weights in tuned.items():
        np.testing.assert_allclose(restored[name], weights, rtol=0, atol=1e-6)
    exact = ("merge", "red.tv.safetensors", "--base", "base.safetensors", "-o", "exact", "--task", "red")
    assert flexswitch(*exact).status == 0
    restored = load_file("exact/model.safetensors")
    for name, weights in tuned.items():
        np.testing.assert_array_equal(restored[name], weights)


def test_a_merge_of_checkpoints_is_their_mean(models, flexswitch):
    merge = ("merge", "red.safetensors", "blue.safetensors", "--base", "base.safetensors", "-o", "mean")
    assert flexswitch(*merge, "--method", "average").status == 0
    merged = load_file("mean/model.safetensors")
    red, blue = load_file("red.safetensors"), load_file("blue.safetensors")
    assert "head.weight" not in merged
    for name, weights in merged.items():
        np.testing.assert_allclose(weights, (red[name].astype(np.float64) + blue[name]) / 2, atol=1e-6)


@pytest.mark.deep
def test_the_bytes_depend_on_neither_the_run_nor_the_thread_count(models):
    steps = [
        ["extract", "base.safetensors", "red.safetensors", "-o", "{}/red.tv.safetensors"],
        ["compress", "{}/red.tv.safetensors", "-o", "{}/red.fsw", "--method", "t-switch"],
        ["compress", "blue.safetensors", "--base", "base.safetensors", "-o", "{}/blue.fsw", "--method", "t-switch"],
        ["pack", "{}/red.fsw", "{}/blue.fsw", "-o", "{}/zoo"],
        ["merge", "{}/zoo", "--base", "base.safetensors", "-o", "{}/red", "--task", "red"],
        ["merge", "{}/zoo", "--base", "base.safetensors", "-o", "{}/merged", "--method", "task-arithmetic"],
    ]  # fmt: skip
    script = "import shlex, sys\nfrom flexswitch.cli.app import app\n"
    script += "for line in sys.stdin: app(shlex.split(line), standalone_mode=False)\n"
    found = []
    for folder, threads in (("one", "1"), ("two", "2"), ("again", "2")):
        (models / folder).mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        lines = "\n".join(" ".join(step).replace("{}", folder) for step in steps)
        command = [sys.executable, "-c", script]
        subprocess.run(
            command, input=lines, text=True, check=True, env=environment, stdout=subprocess.DEVNULL
        )
        names = files_below(models / folder)
        found.append(
            {n: (models / folder / n).read_bytes() for n in names if (models / folder / n).is_file()}
        )
    assert len(found[0]) == 12
    assert found[0] == found[1] == found[2]


def test_compressing_from_a_task_vector_and_from_checkpoints_is_the_same(models, flexswitch):
    flexswitch("extract", "base.safetensors", "red.safetensors", "-o", "red.tv.safetensors")
    flexswitch("compress", "red.tv.safetensors", "-o", "one.fsw", "--name", "red", "--method", "t-switch")
    command = ("compress", "red.safetensors", "--base", "base.safetensors", "-o", "two.fsw", "--name", "red")
    flexswitch(*command, "--method", "t-switch")
    assert (models / "one.fsw").read_bytes() == (models / "two.fsw").read_bytes()


def test_packing_adds_and_removes_tasks(zoo, flexswitch):
    file = task_file(zoo / "zoo", "blue")
    blue = file.read_bytes()
    assert flexswitch("pack", "-o", "zoo", "--remove", "red").status == 0
    assert files_below(zoo / "zoo") == ["tasks", f"tasks/{file.name}", "zoo.json"]
    outcome = flexswitch("pack", "-o", "zoo", "--add", "red.fsw", "--json")
    assert sorted(json.loads(outcome.out)["tasks"]) == ["blue", "red"]
    assert file.read_bytes() == blue
    assert flexswitch("verify", "zoo", "--base", "base.safetensors").status == 0


def test_packing_many_tasks_shows_the_first(zoo, flexswitch):
    outcome = flexswitch("pack", "-o", "many", *(f"t{number:02}=red.fsw" for number in range(23)))
    assert [line.split()[0] for line in outcome.out.splitlines()[-4:-1]] == ["t18", "t19", "and"]
    assert "and 3 more (flexswitch inspect)" in outcome.out


@pytest.mark.parametrize("codec", ["bitmask", "grouped-coo", "flag4", "raw"])
def test_a_zoo_packed_by_any_codec_restores_the_same_model(zoo, flexswitch, codec):
    assert flexswitch("pack", "red.fsw", "-o", "other", "--codec", codec).status == 0
    for source, output in (("zoo", "one"), ("other", "two")):
        merge = ("merge", source, "--base", "base.safetensors", "-o", output, "--task", "red")
        assert flexswitch(*merge).status == 0
    assert (zoo / "one" / "model.safetensors").read_bytes() == (
        zoo / "two" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("path", ["red.fsw", "zoo", "base.safetensors", "red.tv.safetensors"])
def test_inspect_tells_what_a_path_is(zoo, flexswitch, path):
    flexswitch("extract", "base.safetensors", "red.safetensors", "-o", "red.tv.safetensors")
    assert path in flexswitch("inspect", path).out
    assert json.loads(flexswitch("inspect", path, "--json").out)["bytes"] > 0


def test_inspect_accounts_for_every_byte_of_an_artifact(zoo, flexswitch):
    document = json.loads(flexswitch("inspect", "red.fsw", "--json").out)
    parts = document["payload_bytes"] + document["extra_bytes"] + document["header_bytes"]
    assert parts == document["bytes"] == (zoo / "red.fsw").stat().st_size
    assert document["payload_bytes"] == sum(tensor["bytes"] for tensor in document["tensors"].values())


def test_quiet_says_nothing_but_the_result(models, flexswitch):
    command = ("compress", "red.safetensors", "--base", "base.safetensors", "-o", "red.fsw")
    outcome = flexswitch(*command, "--method", "t-switch", "--quiet", "--json")
    assert outcome.err == ""
    assert json.loads(outcome.out)["output"] == "red.fsw"


def test_debug_adds_the_traceback(models, flexswitch):
    command = (
        "compress",
        "./no",
        "--base",
        "base.safetensors",
        "-o",
        "o.fsw",
        "--method",
        "t-switch",
        "--debug",
    )
    outcome = flexswitch(*command)
    assert outcome.status == 1
    assert "Traceback" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("compress", "red.safetensors", "--base", "base.safetensors", "-o", "o.fsw", "--method", "t-swich"),
            "no compression method is named 't-swich'; did you mean 't-switch'? (known: ",
        ),
        (
            ("compress", "red.safetensors", "-o", "o.fsw", "--method", "t-switch"),
            "red.safetensors: expected a task vector (*.tv.safetensors); a checkpoint needs --base BASE",
        ),
        (
            ("compress", "red.safetensors", "--base", "base.safetensors", "-o", "o.bin", "--method", "t-switch"),
            "-o o.bin: expected a file name that ends in .fsw",
        ),
        (
            ("extract", "base.safetensors", "red.safetensors", "-o", "o.safetensors"),
            "-o o.safetensors: expected a file name that ends in .tv.safetensors",
        ),
        (("pack", "-o", "zoo2"), "no artifact is given; name at least one .fsw file"),
        (
            ("pack", "red.fsw", "-o", "zoo2", "--codec", "sign"),
            "no codec is named 'sign' (known: ",
        ),
        (("merge", "zoo", "--base", "base.safetensors", "-o", "m"), "give one of --task NAME and --method NAME"),
        (
            ("merge", "zoo", "--base", "base.safetensors", "-o", "m", "--method", "sum"),
            "no merge method is named 'sum' (known: ",
        ),
        (
            ("compress", "red.safetensors", "--base", "base.safetensors", "-o", "o.fsw", "--set", "drop=1"),
            "setting drop=1 of t-switch: expected a number of at least 0 and below 1",
        ),
        (
            ("compress", "red.safetensors", "--base", "base.safetensors", "-o", "o.fsw", "--set", "dorp=0.5"),
            "no setting of t-switch is named 'dorp'; did you mean 'drop'? (known: ",
        ),
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_status_2_and_the_names_to_choose_from(models, flexswitch, arguments, message):
    before = files_below(models)
    outcome = flexswitch(*arguments)
    assert outcome.status == 2
    assert outcome.error.startswith(message)
    assert files_below(models) == before


@pytest.mark.parametrize(
    ("command", "option"),
    [(("index", "zoo"), "--metric"), (("extract", "a", "b", "-o", "c"), "--dtype"), (("pack", "-o", "zoo"), "--effort")],
)  # fmt: skip
def test_a_choice_that_there_is_not_ends_with_status_2(flexswitch, command, option):
    outcome = flexswitch(*command, option, "none-such")
    assert outcome.status == 2
    assert f"invalid value for '{option}'" in outcome.err


def test_an_unknown_option_ends_with_status_2(flexswitch):
    assert flexswitch("pack", "--outputt", "zoo").status == 2


def test_the_help_names_everything_that_is_registered(flexswitch):
    from flexswitch.merging.checkpoints.architecture import ADAPTERS
    from flexswitch.merging.evaluation.methods import MODES
    from flexswitch.merging.methods.registry import EVALUATED, method_names

    named = {
        "compress": method_names("compression"),
        "pack": ADAPTERS,
        "merge": method_names("merge"),
        "eval": (*EVALUATED, *MODES),
    }
    for command, names in named.items():
        text = "".join(flexswitch(command, "--help").out.split())  # lines break inside names
        assert [name for name in names if name not in text] == []
