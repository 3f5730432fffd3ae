"""The confusion of tasks: counts against a plain loop, leave-one-out, entropy, table and chart."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import message

from flexswitch.cli.confusion_table import confusion_document, confusion_parts
from flexswitch.cli.console import Console
from flexswitch.codecs.errors import InputError
from flexswitch.merging.routing.confusion import (
    accuracies,
    accuracy,
    confusion,
    draw_confusion,
    entropy,
    mistakes,
)
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.routing.query_set import QuerySet, QuerySetHeader
from flexswitch.merging.routing.vote import VOTES

COUNTS = np.array([[8, 2, 0], [0, 9, 1], [5, 0, 5]])
NAMES = ["birds", "cities", "tools"]


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=60))
def test_counts_equal_a_plain_loop(pairs):
    expected = np.zeros((5, 5), np.int64)
    for task, routed in pairs:
        expected[task, routed] += 1
    true, routed = np.array(pairs, np.int32).reshape(-1, 2).T
    counts = confusion(true, routed, 5)
    np.testing.assert_array_equal(counts, expected)
    assert accuracy(counts) == pytest.approx(100 * sum(a == b for a, b in pairs) / max(1, len(pairs)))


def test_accuracies_are_by_task_and_0_without_samples():
    assert accuracies(np.array([[3, 1], [0, 0]])).tolist() == [75.0, 0.0]


def test_mistakes_are_sorted_by_size_and_exclude_right_answers():
    assert mistakes(COUNTS, NAMES, 2) == [("tools", "birds", 5, 0.5), ("birds", "cities", 2, 0.2)]
    assert [each.times for each in mistakes(COUNTS, NAMES, 9)] == [5, 2, 1]
    assert mistakes(np.diag([3, 4]), NAMES[:2], 9) == []


@given(parts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
def test_entropy_follows_the_definition_in_bits(parts):
    shares = np.array(parts) / sum(parts)
    expected = -sum(share * math.log2(share) for share in shares if share)
    found = entropy(np.stack([shares, np.eye(len(parts))[0]]).astype(np.float32))
    np.testing.assert_allclose(found, [expected, 0], atol=1e-5)
    assert (found >= 0).all()


# --- leave-one-out ----------------------------------------------------------------------------------------


def make_query_set(seed: int, exemplars: int, tasks: int, duplicates: int = 0) -> QuerySet:
    generator = np.random.Generator(np.random.PCG64(seed))
    ids = generator.integers(0, tasks, exemplars).astype(np.int32)
    features = (generator.normal(size=(exemplars, 4)) + ids[:, None]).astype(np.float32)
    features[:duplicates] = features[0]
    header = QuerySetHeader(tasks=[f"task{n}" for n in range(tasks)], features="pooled", per_task=1, seed=0)
    return QuerySet(header, features, ids)


@pytest.mark.parametrize("vote", VOTES)
@pytest.mark.parametrize("neighbours", [1, 5, 1000])
@pytest.mark.parametrize("duplicates", [0, 9])
def test_leaving_one_out_equals_searching_an_index_without_the_exemplar(vote, neighbours, duplicates):
    query_set = make_query_set(0, 40, 3, duplicates)
    leading = QueryIndex(query_set, neighbours, vote=vote).leave_one_out()
    assert leading.shape == (40,)
    for row in range(40):
        kept = np.arange(40) != row
        others = QuerySet(query_set.header, query_set.points[kept], query_set.task_ids[kept])
        query = torch.from_numpy(query_set.points[row : row + 1])
        assert leading[row] == QueryIndex(others, neighbours, vote=vote).weights(query).leading[0]


def test_each_of_thousands_of_exemplars_is_left_out():
    query_set = make_query_set(1, 2500, 3)
    points = query_set.points.astype(np.float64)
    squares = np.stack([np.square(points - point).sum(1) for point in points])
    np.fill_diagonal(squares, np.inf)
    expected = query_set.task_ids[squares.argmin(1)]
    np.testing.assert_array_equal(QueryIndex(query_set, 1).leave_one_out(), expected)


def test_a_single_exemplar_can_not_be_left_out():
    index = QueryIndex(make_query_set(0, 1, 1), 5)
    assert message(InputError, index.leave_one_out) == (
        "the query index holds one exemplar, and no other one to compare it with"
    )


# --- table and document -----------------------------------------------------------------------------------


def printed(counts: np.ndarray, tasks: list[str], capsys) -> list[str]:
    Console(quiet=True, as_json=False).result({}, *confusion_parts(counts, tasks))
    lines = capsys.readouterr().out.splitlines()
    return [" ".join(line.split()) for line in lines if not line.startswith("─")]


def test_the_table_shows_the_matrix_and_the_largest_confusions(capsys):
    assert printed(COUNTS, NAMES, capsys) == [
        "confusion",
        "task birds cities tools right",
        "birds 8 2 · 80 %",
        "cities · 9 1 90 %",
        "tools 5 · 5 50 %",
        "73.3 % of 30 lead to their own task",
        "largest confusions: tools taken for birds 5 times (50 %), birds taken for cities 2 times (20 %), "
        "cities taken for tools 1 times (10 %)",
    ]


def test_without_a_mistake_no_confusion_is_named(capsys):
    assert printed(np.diag([3, 4]), NAMES[:2], capsys)[-1] == "100.0 % of 7 lead to their own task"


def test_the_table_of_many_tasks_shows_only_the_worst(capsys):
    counts = np.diag(np.full(120, 50))
    counts[7, 3], counts[7, 4], counts[90, 1] = 30, 20, 5
    lines = printed(counts, [f"t{n}" for n in range(120)], capsys)
    assert lines[:4] == [
        "confusion",
        "task taken for samples right",
        "t7 t3 30, t4 20 100 50 %",
        "t90 t1 5 55 91 %",
    ]
    assert len(lines) == 2 + 20 + 2
    assert lines[-2] == "99.1 % of 6,055 lead to their own task; shown are the 20 worst of 120 tasks"


def test_the_document_holds_every_count():
    document = confusion_document(COUNTS, NAMES)
    assert document["tasks"] == NAMES
    assert document["confusion"] == COUNTS.tolist()
    assert document["accuracy"] == pytest.approx(100 * 22 / 30)
    assert document["accuracies"] == {"birds": 80.0, "cities": 90.0, "tools": 50.0}


# --- picture ----------------------------------------------------------------------------------------------


def picture_size(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


def test_drawing_again_writes_the_same_png(tmp_path):
    for name in ("one", "two"):
        draw_confusion(COUNTS, NAMES, tmp_path / f"{name}.png", overwrite=False)
    draw_confusion(COUNTS.T, NAMES, tmp_path / "other.png", overwrite=False)
    one, two, other = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other
    assert len(list(tmp_path.iterdir())) == 3


def drawn(counts: np.ndarray, tasks: list[str], path, monkeypatch):
    """Returns the axes of a drawn chart."""
    from matplotlib.figure import Figure

    made = []
    add = Figure.add_subplot
    monkeypatch.setattr(Figure, "add_subplot", lambda self: made.append(add(self)) or made[-1])
    draw_confusion(counts, tasks, path, overwrite=False)
    return made[0]


def test_a_chart_shows_each_count_and_colours_by_the_tasks_share(tmp_path, monkeypatch):
    axes = drawn(COUNTS, NAMES, tmp_path / "c.png", monkeypatch)
    written = {each.get_position(): each.get_text() for each in axes.texts}
    assert written == {(0, 0): "8", (1, 0): "2", (1, 1): "9", (2, 1): "1", (0, 2): "5", (2, 2): "5"}
    np.testing.assert_allclose(axes.images[0].get_array(), [[80, 20, 0], [0, 90, 10], [50, 0, 50]])
    assert [each.get_text() for each in axes.get_yticklabels()] == NAMES


def test_a_chart_of_many_tasks_shows_the_most_confused(tmp_path, monkeypatch):
    counts = np.diag(np.full(300, 90))
    counts[17, 250] = 10
    axes = drawn(counts, [f"t{n}" for n in range(300)], tmp_path / "c.png", monkeypatch)
    names = [each.get_text() for each in axes.get_yticklabels()]
    assert len(names) == 60
    assert {"t17", "t250"} <= set(names)
    assert axes.images[0].get_array()[names.index("t17"), names.index("t250")] == 10
    assert axes.get_title() == "routing accuracy 100.0 % of 27,010 samples; the 60 most confused of 300 tasks"
    assert max(picture_size(tmp_path / "c.png")) < 3500


def test_an_existing_chart_is_replaced_only_with_overwrite(tmp_path):
    path = tmp_path / "c.png"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        draw_confusion(COUNTS, NAMES, path, overwrite=False)
    assert path.read_bytes() == b"mine"
    draw_confusion(COUNTS, NAMES, path, overwrite=True)
    picture_size(path)
