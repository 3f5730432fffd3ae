"""`index` and `eval` as a user types them, on tiny models."""

import json

import pytest
from support.tiny_models import text_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return text_toy(tmp_path_factory.mktemp("toy"))


def test_index_and_eval_print_a_table_and_draw_a_chart(toy, flexswitch, tmp_path):
    index = ("index", toy.zoo, "--base", toy.base, "--exemplars", toy.data, "--per-task", "10", "--overwrite")
    outcome = flexswitch(*index)
    assert outcome.status == 0
    assert outcome.out.startswith(f"{toy.zoo}: query index of {len(toy.finetuned)} tasks, features ")

    finetuned = [word for task, path in toy.finetuned.items() for word in ("--finetuned", f"{task}={path}")]
    methods = "base,individual,average,task-arithmetic,t-switch,auto-switch"
    command = ("eval", toy.zoo, "--base", toy.base, "--data", toy.data, "--methods", methods, *finetuned)
    outcome = flexswitch(*command, "--routing", "per-sample,oracle", "--plot", tmp_path / "scores.png")
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    heading = [
        "method",
        *toy.finetuned,
        "average",
        "of",
        "individual",
        "bytes",
        "a",
        "task",
        "routing",
        "time",
    ]
    assert sorted(lines[0].split()) == sorted(heading)
    rows = [line.split("  ")[0] for line in lines[2:9]]
    assert rows == [
        "base", "individual", "average", "task-arithmetic", "t-switch",
        "auto-switch (per-sample)", "auto-switch (oracle)",
    ]  # fmt: skip
    assert "routed methods answer one mixed stream, each sample under the head of its own task" in outcome.out
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_eval_prints_one_json_document(toy, flexswitch):
    command = ("eval", toy.zoo, "--base", toy.base, "--data", toy.data, "--limit", "5", "--json")
    document = json.loads(flexswitch(*command).out)
    assert document["tasks"] == sorted(toy.finetuned)
    assert list(document["methods"]) == ["base", "t-switch"]
    row = document["methods"]["t-switch"]
    assert row["average"] == pytest.approx(sum(row["scores"].values()) / len(row["scores"]))
    assert row["share_of_individual"] is None
    assert row["bytes_per_task"] == pytest.approx(
        sum(file.stat().st_size for file in (toy.zoo / "tasks").iterdir()) / len(toy.finetuned)
    )


def test_a_second_index_is_refused_unless_overwritten(toy, flexswitch):
    index = ("index", toy.zoo, "--base", toy.base, "--exemplars", toy.data)
    flexswitch(*index, "--overwrite")
    outcome = flexswitch(*index)
    assert outcome.status == 1
    assert (
        outcome.error
        == f"{toy.zoo}: has a query index already; --overwrite replaces it, --add adds the tasks it lacks"
    )
