"""Query sets with a projection."""

from dataclasses import replace

import numpy as np
import pytest
from support.checkpoints import message
from support.query_sets import TASKS, UNFIT, indexed, make_query_set, zoo_with
from support.tiny_models import contents
from support.zoo_files import index_file, writer_of

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.index_record import RoutingAccuracy
from flexswitch.merging.routing.projection import Projection
from flexswitch.merging.routing.query_set import (
    QuerySet,
    QuerySetHeader,
    read_query_set,
    without_tasks,
    write_query_set,
)


def projected(mean: bool, deviation: bool, rank: int | None, parts: int = 1) -> QuerySet:
    """Returns a query set of features of width 6 under a projection."""
    generator = np.random.Generator(np.random.PCG64(1))
    width = rank or 6
    projection = Projection(
        parts,
        generator.normal(size=6).astype(np.float32) if mean else None,
        generator.uniform(1, 2, 6).astype(np.float32) if deviation else None,
        generator.normal(size=(rank, 6)).astype(np.float32) if rank else None,
    )
    ids = np.repeat(np.arange(3, dtype=np.int32), 4)
    accuracy = RoutingAccuracy(
        euclidean_loo=50.0, euclidean_held_out=49.5, learned_loo=99.0, learned_held_out=75.0
    )
    header = QuerySetHeader(
        tasks=TASKS,
        features="layers:0+2",
        dtype="bfloat16",
        parts=parts,
        accuracy=accuracy,
        per_task=4,
        seed=7,
    )
    return QuerySet(header, generator.normal(size=(12, width)).astype(np.float32), ids, projection)


KINDS = [(True, False, None), (True, True, None), (True, False, 2), (True, True, 3), (False, False, 2)]


@pytest.mark.parametrize(("mean", "deviation", "rank"), KINDS)
def test_a_projected_query_set_reads_back_with_its_points_in_float16(tmp_path, mean, deviation, rank):
    written = projected(mean, deviation, rank, parts=2)
    zoo = indexed(tmp_path, written)
    record = zoo.record.index
    assert record is not None
    normalise = ("standardised" if deviation else "centred") if mean else "none"
    assert (record.normalise, record.dtype, record.features) == (normalise, "bfloat16", "layers:0+2")
    assert (record.metric, record.rank) == (("learned", rank) if rank else ("euclidean", None))
    assert record.accuracy == written.header.accuracy
    read = read_query_set(zoo)
    assert read.header == written.header
    np.testing.assert_array_equal(read.points, written.points.astype(np.float16).astype(np.float32))
    assert read.points.dtype == np.float32
    assert read.projection.parts == 2
    for name in ("mean", "deviation", "metric"):
        stored, expected = getattr(read.projection, name), getattr(written.projection, name)
        assert (stored is None) == (expected is None)
        if expected is not None:
            np.testing.assert_array_equal(stored, expected)


def test_an_exemplar_takes_two_bytes_per_coordinate(tmp_path):
    few, many = projected(True, False, 2), projected(True, False, 2)
    many = QuerySet(many.header, np.tile(many.points, (100, 1)), np.tile(many.task_ids, 100), many.projection)
    sizes = [write_query_set(writer_of(tmp_path), each).size for each in (few, many)]
    assert abs(sizes[1] - sizes[0] - 99 * 12 * (2 * 2 + 4)) < 64  # and four for its task's id


def test_points_too_large_for_float16_are_refused_and_nothing_is_written(tmp_path):
    query_set = projected(True, False, 2)
    query_set.points[3, 1] = 1e5
    assert message(InputError, lambda: write_query_set(writer_of(tmp_path), query_set)) == (
        "the exemplars' points reach 1e+05, and float16 holds up to 65504.0; use --normalise centred"
    )
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": np.zeros(5, np.float32)},
        {"metric": np.zeros((3, 6), np.float32)},
        {"metric": np.full((2, 6), np.nan, np.float32)},
        {"deviation": np.zeros(6, np.float32)},
        {"parts": 4},
        {"parts": 0},
    ],
    ids=["narrow mean", "another rank", "NaN", "deviation 0", "parts that do not divide", "no parts"],
)
def test_a_projection_that_does_not_fit_is_refused(tmp_path, changes):
    whole = projected(True, True, 2)
    header = whole.header.model_copy(update={"parts": changes.get("parts", 1)})
    zoo = indexed(
        tmp_path, QuerySet(header, whole.points, whole.task_ids, replace(whole.projection, **changes))
    )
    assert message(ArtifactError, lambda: read_query_set(zoo)) == f"{index_file(tmp_path)}: {UNFIT}"


def test_removing_a_task_keeps_the_projection(tmp_path):
    written = projected(True, False, 2)
    record = without_tasks(indexed(tmp_path, written), {"cities"}, writer_of(tmp_path))
    read = read_query_set(zoo_with(tmp_path, record))
    assert (record.metric, record.rank) == ("learned", 2)
    np.testing.assert_array_equal(read.projection.metric, written.projection.metric)
    assert read.header.tasks == ["birds", "tools"]


def test_removing_an_averaged_task_removes_the_index(tmp_path):
    whole = make_query_set()
    averaged = {"features": "average:layer:1", "averaged": ["birds", "planets"]}
    zoo = indexed(tmp_path, QuerySet(whole.header.model_copy(update=averaged), whole.points, whole.task_ids))
    assert without_tasks(zoo, {"planets"}, writer_of(tmp_path)) is None
    assert read_query_set(
        zoo_with(tmp_path, without_tasks(zoo, {"tools"}, writer_of(tmp_path)))
    ).header.tasks == [
        "birds",
        "cities",
    ]
