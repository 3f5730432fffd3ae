"""`route` as a user types it, on tiny models: the weights are the index's, and a mistake ends in one line."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.tiny_models import TASKS, image_toy, text_toy, texts, write_jsonl

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.routing.query_set import read_query_set


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    from typer.testing import CliRunner

    from flexswitch.cli.app import app

    toy = text_toy(tmp_path_factory.mktemp("toy"))
    arguments = [
        "index",
        str(toy.zoo),
        "--base",
        str(toy.base),
        "--exemplars",
        str(toy.data),
        "-q",
        "--features",
        "pooled",
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return toy


@pytest.fixture
def mixed(tmp_path):
    """A file of ten samples of each task."""
    inputs = [text for number, task in enumerate(TASKS) for text in texts(task, 10, seed=50 + number)]
    return write_jsonl(tmp_path / "mixed.jsonl", inputs, None)


@pytest.fixture
def route(toy, mixed, flexswitch):
    def run(*options, zoo=toy.zoo, base=toy.base, input_=mixed):
        return flexswitch("route", zoo, "--base", base, "--input", input_, *options)

    return run


def features_of(toy, inputs: list[str]) -> torch.Tensor:
    """Returns the mean of the last layer's tokens by transformers alone, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    encoder, tokenize = AutoModel.from_pretrained(toy.base).eval(), AutoTokenizer.from_pretrained(toy.base)
    with torch.no_grad():
        batches = [tokenize(text, truncation=True, return_tensors="pt") for text in inputs]
        return torch.cat([encoder(**batch).last_hidden_state.mean(1) for batch in batches])


@pytest.mark.parametrize(("options", "neighbours", "vote"), [((), 5, "uniform"), (("--neighbours", 7, "--vote", "kernel"), 7, "kernel")])  # fmt: skip
def test_the_document_holds_what_the_index_answers_for_each_sample(
    toy, mixed, route, options, neighbours, vote
):
    document = json.loads(route(*options, "--json").out)
    assert {name: document[name] for name in ("neighbours", "vote", "snap", "mix")} == {
        "neighbours": neighbours, "vote": vote, "snap": 0.0, "mix": "share",
    }  # fmt: skip
    inputs = [json.loads(line)["text"] for line in mixed.read_text().splitlines()]
    index = QueryIndex(read_query_set(open_zoo(toy.zoo)), neighbours, vote=vote)
    routed = index.weights(features_of(toy, inputs))
    assert len(document["samples"]) == len(inputs) == 30
    for row, sample in enumerate(document["samples"]):
        weights = [sample["weights"].get(task, 0) for task in index.tasks]
        np.testing.assert_allclose(weights, routed.weights[row], atol=1e-5)
        assert sample["task"] == index.tasks[routed.leading[row]] == next(iter(sample["weights"]))
        assert list(sample["weights"].values()) == sorted(sample["weights"].values(), reverse=True)
        assert sample["distance"] == pytest.approx(float(routed.distance[row]), rel=1e-4)
        assert sample["out_of_scope"] == bool(routed.far[row])
    assert document["out_of_scope"] == int(routed.far.sum())
    assert document["far_from"] == pytest.approx(index.far_from)


def test_a_line_for_each_sample_tells_its_tasks_and_which_are_out_of_scope(route):
    outcome, document = route(), json.loads(route("--json").out)
    lines = outcome.out.splitlines()
    assert len(lines) == 31
    for number, (line, sample) in enumerate(zip(lines, document["samples"], strict=False), 1):
        shares = "  ".join(f"{task} {share:.3g}" for task, share in sample["weights"].items())
        assert line == f"{number:>2}  {shares}" + ("  ! out of scope" if sample["out_of_scope"] else "")
    count = document["out_of_scope"]
    assert lines[-1].startswith(f"{count or 'none'} of 30 samples ")


def test_samples_like_no_exemplar_are_marked(route, tmp_path):
    of_all_tasks = write_jsonl(tmp_path / "all.jsonl", ["birds0 cities0 tools0"], None)
    outcome = route(input_=of_all_tasks)
    assert outcome.out.splitlines()[0].endswith("  ! out of scope")
    assert outcome.out.splitlines()[1] == (
        "1 of 1 samples is out of scope: farther from every exemplar than 99 % of the exemplars are from "
        "the nearest other one"
    )


def test_snapping_makes_nearly_one_hot_weights_one_hot(route):
    free = json.loads(route("--json").out)["samples"]
    snapped = json.loads(route("--snap", "0.2", "--json").out)["samples"]
    shares = [max(sample["weights"].values()) for sample in free]
    assert any(0.79 < share < 1 for share in shares)
    assert any(share < 0.79 for share in shares)
    for before, after in zip(free, snapped, strict=True):
        assert after["task"] == before["task"]
        if max(before["weights"].values()) > 0.79:
            assert after["weights"] == {before["task"]: 1.0}
        assert sum(after["weights"].values()) == pytest.approx(1)


def test_root_weights_are_the_roots_of_the_shares_that_snapping_leaves(route):
    shares = json.loads(route("--snap", "0.2", "--json").out)["samples"]
    document = json.loads(route("--snap", "0.2", "--mix", "root", "--json").out)
    assert document["mix"] == "root"
    assert any(len(each["weights"]) > 1 for each in shares)
    for plain, root in zip(shares, document["samples"], strict=True):
        assert root["task"] == plain["task"]
        assert {task: weight**2 for task, weight in root["weights"].items()} == pytest.approx(
            plain["weights"]
        )


def test_samples_are_routed_alike_in_a_file_of_any_length(route, mixed, tmp_path):
    whole = json.loads(route("--json").out)["samples"]
    long = tmp_path / "long.jsonl"
    long.write_text(mixed.read_text() * 40)
    found = json.loads(route("--json", input_=long).out)["samples"]
    assert [each["weights"] for each in found] == [each["weights"] for each in whole] * 40


def test_a_limit_takes_the_first_samples(route):
    whole = json.loads(route("--json").out)["samples"]
    first = json.loads(route("--limit", "9", "--json").out)["samples"]
    assert [each["weights"] for each in first] == [each["weights"] for each in whole[:9]]


def test_samples_may_be_rows_of_a_csv_file(route, tmp_path, mixed):
    path = tmp_path / "mixed.csv"
    inputs = [json.loads(line)["text"] for line in mixed.read_text().splitlines()]
    path.write_text("text\n" + "\n".join(inputs) + "\n")
    assert (
        json.loads(route("--json", input_=path).out)["samples"] == json.loads(route("--json").out)["samples"]
    )


def test_images_are_routed_too(tmp_path, flexswitch):
    toy = image_toy(tmp_path / "toy")
    flexswitch("index", toy.zoo, "--base", toy.base, "--exemplars", toy.data)
    samples = toy.data / "light.test.npz"
    document = json.loads(flexswitch("route", toy.zoo, "--base", toy.base, "--input", samples, "--json").out)
    assert document["neighbours"] == 10
    assert sum(sample["task"] == "light" for sample in document["samples"]) > 20


@pytest.mark.parametrize("name", ["mixed.jsonl", "mixed.test.jsonl.gz", "mixed.train.csv"])
def test_a_zoo_indexed_with_a_file_takes_the_samples_features_from_one(toy, flexswitch, tmp_path, name):
    zoo = shutil.copytree(toy.zoo, tmp_path / "zoo")
    tensors = {}
    for number, task in enumerate(TASKS):
        noise = torch.randn(20, 3, generator=torch.Generator().manual_seed(number))
        tensors[f"{task}.train"] = torch.eye(3)[number] + 0.01 * noise
    tensors["mixed.train" if "train" in name else "mixed.test"] = torch.eye(3)[[2, 0]]
    save_file(tensors, tmp_path / "f.safetensors")
    features = ("--features", tmp_path / "f.safetensors")
    index = ("index", zoo, "--base", toy.base, "--exemplars", toy.data, "--overwrite", *features)
    assert flexswitch(*index).status == 0
    path = tmp_path / name
    if name.endswith(".csv"):
        path.write_text("text\na\nb\n")
    else:
        write_jsonl(path, ["a", "b"], None)
    command = ("route", zoo, "--base", toy.base, "--input", path)
    outcome = flexswitch(*command, *features)
    assert outcome.out.splitlines()[:2] == ["1  tools 1", "2  birds 1"]
    refused = flexswitch(*command)
    assert (refused.status, refused.error) == (
        1, f"{zoo}: was indexed with the features 'file'; give that file with --features",
    )  # fmt: skip


# --- mistakes ---------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_told(route, tmp_path):
    outcome = route(input_=tmp_path / "no.jsonl")
    assert (outcome.status, outcome.error) == (
        1,
        f"{tmp_path / 'no.jsonl'}: no such file; expected samples as one of .jsonl.gz, .jsonl, .csv, .parquet, .npz",
    )


def test_a_file_without_samples_is_told(route, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    outcome = route(input_=tmp_path / "empty.jsonl")
    assert (outcome.status, outcome.error) == (
        1, f"{tmp_path / 'empty.jsonl'}: has no examples; expected at least one",
    )  # fmt: skip


def test_another_base_is_refused(route, toy):
    other = toy.finetuned["birds"]
    outcome = route(base=other)
    assert outcome.status == 1
    assert outcome.error.startswith(f"{other}: is not the base of {toy.zoo}: ")


def test_a_zoo_without_an_index_says_how_to_build_one(route, toy, tmp_path):
    zoo = shutil.copytree(toy.zoo, tmp_path / "zoo")
    record = json.loads((zoo / "zoo.json").read_text())
    (zoo / "zoo.json").write_text(json.dumps(record | {"index": None}))
    outcome = route(zoo=zoo)
    assert (outcome.status, outcome.error) == (
        1, f"{zoo}: the zoo has no query index; build one: flexswitch index {zoo} --base BASE --exemplars DIR",
    )  # fmt: skip


def test_a_zoo_that_is_not_there_is_told(route, tmp_path):
    outcome = route(zoo=tmp_path / "no")
    assert outcome.status == 1
    assert outcome.error.startswith(f"{tmp_path / 'no'}: not a zoo: ")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--snap", "0.5"), "--snap 0.5: expected a share from 0 to below 0.5"),
        (("--device", "gpu"), "--device: no device is named 'gpu'; did you mean 'cpu'?"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(route, options, error, tmp_path):
    outcome = route(*options, input_=tmp_path / "no.jsonl")
    assert outcome.status == 2
    assert outcome.error.startswith(error)


@pytest.mark.parametrize(("option", "value"), [("--vote", "kernal"), ("--mix", "roots")])
def test_a_choice_that_there_is_not_is_refused(route, option, value):
    outcome = route(option, value)
    assert outcome.status == 2
    assert f"invalid value for '{option}'" in outcome.err


@pytest.mark.parametrize("option", ["--neighbours", "--limit"])
def test_counts_begin_at_1(route, option):
    assert route(option, "0").status == 2


def test_texts_that_differ_in_spelling_alone_are_told_apart_by_their_shape(toy, flexswitch, tmp_path):
    """Two tasks have the same words, one of them wide apart, which the tokenizer drops."""
    zoo, data = shutil.copytree(toy.zoo, tmp_path / "zoo"), tmp_path / "data"
    data.mkdir()
    words = texts("birds", 60, seed=8)
    spelt = {
        "birds": words,
        "tools": [text.replace(" ", "   ") for text in words],
        "cities": texts("cities", 60, seed=9),
    }
    for task, each in spelt.items():
        write_jsonl(data / f"{task}.train.jsonl", each[:40], None)
        write_jsonl(data / f"{task}.test.jsonl", each[40:], [0] * 20)
    shares, right = {}, {}
    for features in ("auto", "shape+auto"):
        arguments = ("--base", toy.base, "--exemplars", data, "--features", features, "--overwrite")
        assert flexswitch("index", zoo, *arguments).status == 0
        assert open_zoo(zoo).record.index.features.startswith("shape+") == (features == "shape+auto")
        evaluated = flexswitch(
            "eval", zoo, "--base", toy.base, "--data", data, "--methods", "auto-switch", "--json"
        )
        row = json.loads(evaluated.out)["methods"]["auto-switch (per-sample)"]
        shares[features] = row["routing_accuracy"]
        path = write_jsonl(tmp_path / "spelt.jsonl", spelt["birds"][40:] + spelt["tools"][40:], None)
        routed = flexswitch("route", zoo, "--base", toy.base, "--input", path, "--json")
        leading = [each["task"] for each in json.loads(routed.out)["samples"]]
        right[features] = leading[:20].count("birds") + leading[20:].count("tools")
    assert shares["shape+auto"] > 90 > 75 > shares["auto"]
    assert right["shape+auto"] > 36 > 26 > right["auto"]
