"""`index --report`: where each exemplar is led by the others, as a table, a document and a picture."""

import json

import numpy as np
import pytest
from support.tiny_models import text_toy

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.routing.query_set import read_query_set


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return text_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def index(toy, flexswitch):
    def run(*options):
        return flexswitch("index", toy.zoo, "--base", toy.base, "--exemplars", toy.data, *options)

    assert (
        run("--overwrite", "--features", "pooled", "--metric", "euclidean", "--normalise", "none").status == 0
    )
    return run


def plain_counts(toy) -> np.ndarray:
    """Returns the confusion of leaving one out, by plain numpy."""
    query_set = read_query_set(open_zoo(toy.zoo))
    points, ids = query_set.points.astype(np.float64), query_set.task_ids
    counts = np.zeros((3, 3), int)
    for row in range(len(points)):
        distances = np.linalg.norm(points - points[row], axis=1)
        distances[row] = np.inf
        nearest = ids[np.argsort(distances, kind="stable")[:10]]
        votes = np.bincount(nearest, minlength=3)
        counts[ids[row], next(task for task in nearest if votes[task] == votes.max())] += 1
    return counts


def test_a_report_alone_tells_of_the_index_that_there_is(toy, index, flexswitch, tmp_path):
    before = (toy.zoo / "zoo.json").read_bytes()
    outcome = flexswitch("index", toy.zoo, "--report", tmp_path / "c.png", "--json")
    assert outcome.status == 0
    report = json.loads(outcome.out)["report"]
    counts = plain_counts(toy)
    assert report["tasks"] == ["birds", "cities", "tools"]
    assert report["confusion"] == counts.tolist()
    assert report["accuracy"] == pytest.approx(100 * np.trace(counts) / counts.sum())
    assert report["held_out_accuracy"] is None
    assert report["picture"] == str(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert (toy.zoo / "zoo.json").read_bytes() == before


def test_a_report_prints_the_table_and_where_it_is_from(toy, index, flexswitch, tmp_path):
    lines = flexswitch("index", toy.zoo, "--report", tmp_path / "c.png").out.splitlines()
    assert lines[1].split() == ["task", "birds", "cities", "tools", "right"]
    assert [line.split()[0] for line in lines[3:6]] == ["birds", "cities", "tools"]
    assert (
        lines[-1]
        == f"each exemplar routed by its 10 nearest others, one vote each; drawn in {tmp_path / 'c.png'}"
    )


def test_a_new_index_is_reported_when_it_is_made(index, tmp_path):
    outcome = index("--overwrite", "--features", "layer:1", "--report", tmp_path / "c.png")
    assert outcome.status == 0
    assert "query index of 3 tasks" in outcome.out.splitlines()[0]
    assert "to their own task" in outcome.out
    assert (tmp_path / "c.png").is_file()


def test_a_learned_metrics_report_says_that_it_is_too_good(toy, index, flexswitch, tmp_path):
    assert index("--overwrite", "--features", "layer:1", "--metric", "learned").status == 0
    record = open_zoo(toy.zoo).record.index
    assert record.metric == "learned"
    lines = flexswitch("index", toy.zoo, "--report", tmp_path / "c.png").out.splitlines()
    assert lines[-1] == (
        "the metric was trained on all of them; of exemplars held out from its training, "
        f"{record.accuracy.learned_held_out:.1f} % are routed to their own task"
    )


def test_an_existing_picture_is_refused_before_anything_is_built(toy, index, tmp_path):
    (tmp_path / "c.png").write_bytes(b"mine")
    before = (toy.zoo / "zoo.json").read_bytes()
    outcome = index("--report", tmp_path / "c.png")
    assert (outcome.status, outcome.error) == (
        1, f"{tmp_path / 'c.png'}: exists already; give another output, or --overwrite to replace it",
    )  # fmt: skip
    assert (toy.zoo / "zoo.json").read_bytes() == before
    assert (tmp_path / "c.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ((), "building an index takes"),
        (("--report", "c.png", "--features", "layer:1"), "--features: building an index takes"),
        (("--report", "c.png", "--add"), "--add: building an index takes"),
        (("--report", "c.png", "--per-task", "5"), "--per-task: building an index takes"),
        (("--exemplars", "data"), "--base is missing: building an index takes"),
        (("--base", "base"), "--exemplars is missing: building an index takes"),
    ],
)
def test_building_without_a_base_or_exemplars_is_wrong_usage(
    toy, flexswitch, monkeypatch, tmp_path, options, what
):
    monkeypatch.chdir(tmp_path)
    outcome = flexswitch("index", toy.zoo, *options)
    assert (outcome.status, outcome.error) == (
        2, f"{what} --base BASE and --exemplars DIR; --report FILE.png alone describes the present one",
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_zoo_without_an_index_has_no_report(tmp_path, flexswitch):
    other = text_toy(tmp_path / "other", test_count=1)
    outcome = flexswitch("index", other.zoo, "--report", tmp_path / "c.png")
    assert outcome.status == 1
    assert "the zoo has no query index" in outcome.error
    assert not (tmp_path / "c.png").exists()
