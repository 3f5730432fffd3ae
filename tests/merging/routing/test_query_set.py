"""The query set's file: round trip, damage, and the removal of tasks."""

from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import flip_bit, message
from support.query_sets import (
    TASKS,
    UNFIT,
    as_packed,
    indexed,
    make_query_set,
    plain_tensors,
    write_by_hand,
    zoo_with,
)
from support.tiny_models import contents
from support.zoo_files import INDEX_FILE, index_file, without_hashes, writer_of

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.records import CHECKSUM_KEY
from flexswitch.merging.routing.query_set import (
    QuerySet,
    check_covers,
    read_query_set,
    without_tasks,
    write_query_set,
)


@pytest.mark.parametrize(("per_task", "width"), [(1, 1), (4, 5), (30, 16)])
def test_a_query_set_reads_back_as_it_was_written(tmp_path, per_task, width):
    written = make_query_set(per_task, width)
    zoo = indexed(tmp_path, written)
    assert zoo.record.index is not None
    assert zoo.record.index.file == f"index/exemplars.{zoo.record.index.sha256[:16]}.safetensors"
    assert zoo.record.index.model_dump(exclude={"file", "size", "sha256"}) == {
        "features": "layer:1",
        "dtype": "float32",
        "normalise": "none",
        "metric": "euclidean",
        "rank": None,
        "accuracy": None,
        "per_task": per_task,
        "seed": 7,
    }
    read = read_query_set(zoo)
    assert read.header == written.header
    assert (read.points.dtype, read.task_ids.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(read.points, written.points)
    np.testing.assert_array_equal(read.task_ids, written.task_ids)


def test_writing_a_query_set_again_replaces_it_with_the_same_bytes(tmp_path):
    writer = writer_of(tmp_path)
    write_query_set(writer, make_query_set())
    first = contents(tmp_path)
    other = write_query_set(writer, make_query_set(9))
    assert other != write_query_set(writer, make_query_set())
    (tmp_path / other.file).unlink()
    assert contents(tmp_path) == first
    assert without_hashes(first) == {INDEX_FILE}


def test_a_zoo_without_an_index_says_how_to_build_one(tmp_path):
    assert message(InputError, lambda: read_query_set(zoo_with(tmp_path, None))) == (
        f"{tmp_path}: the zoo has no query index; build one: "
        f"flexswitch index {tmp_path} --base BASE --exemplars DIR"
    )


def test_a_missing_index_file_is_refused(tmp_path):
    zoo = indexed(tmp_path, make_query_set())
    file = index_file(tmp_path)
    file.unlink()
    assert message(ArtifactError, lambda: read_query_set(zoo)) == (
        f"{file}: missing; zoo.json lists it as the query index; open the zoo again if another process has "
        "changed it, else pack or index it again"
    )


def test_any_flipped_bit_is_detected(tmp_path):
    zoo = indexed(tmp_path, make_query_set())
    file = index_file(tmp_path)
    size = file.stat().st_size
    expected = (
        f"{file}: is not the file that was packed as the query index: {size:,} bytes where zoo.json says "
        f"{size:,}, or another SHA-256; restore it from a copy, or pack it again"
    )
    for offset in range(0, size, 11):
        flip_bit(file, offset, offset % 8)
        assert message(ArtifactError, lambda: read_query_set(zoo)) == expected
        flip_bit(file, offset, offset % 8)
    read_query_set(zoo)


def test_a_truncated_file_is_refused_whether_or_not_zoo_json_knows_it(tmp_path):
    zoo = indexed(tmp_path, make_query_set())
    file = index_file(tmp_path)
    data = file.read_bytes()
    for length in range(0, len(data), 7):
        file.write_bytes(data[:length])
        assert message(ArtifactError, lambda: read_query_set(zoo)).startswith(f"{file}: is not the file that")
        shorter = as_packed(tmp_path)
        found = message(ArtifactError, lambda zoo=shorter: read_query_set(zoo))
        assert found.startswith(f"{index_file(tmp_path)}: ")
        index_file(tmp_path).rename(file)


def test_a_flipped_bit_of_the_header_fails_its_checksum(tmp_path):
    indexed(tmp_path, make_query_set())
    file = index_file(tmp_path)
    offset = file.read_bytes().index(b"layer:1")
    flip_bit(file, offset)
    zoo = as_packed(tmp_path)
    assert message(ArtifactError, lambda: read_query_set(zoo)) == (
        f"{index_file(tmp_path)}: its header is damaged: the checksum in '{CHECKSUM_KEY}' does not fit"
    )


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ('{"version": 2}', "has format version 2, this flexswitch reads 1; install a newer one"),
        ("{}", "its field 'tasks' is wrong: Field required"),
        ("[]", "its JSON document is a list, expected an object"),
        (
            make_query_set().header.model_dump_json().replace("per_task", "perTask"),
            "its field 'per_task' is wrong: Field required",
        ),
    ],
)
def test_a_header_of_another_kind_is_refused(tmp_path, document, reason):
    zoo = write_by_hand(tmp_path, plain_tensors(make_query_set()), document)
    assert message(ArtifactError, lambda: read_query_set(zoo)) == f"{index_file(tmp_path)}: {reason}"


def broken(**changes: np.ndarray) -> QuerySet:
    whole = make_query_set()
    return QuerySet(whole.header, **({"points": whole.points, "task_ids": whole.task_ids} | changes))


@pytest.mark.parametrize(
    "query_set",
    [
        broken(task_ids=np.full(12, 3, np.int32)),
        broken(task_ids=np.full(12, -1, np.int32)),
        broken(task_ids=np.zeros(11, np.int32)),
        broken(points=np.zeros((11, 5), np.float32)),
        broken(points=np.full((12, 5), np.nan, np.float32)),
        broken(points=np.full((12, 5), np.inf, np.float32)),
        broken(points=np.zeros((0, 5), np.float32), task_ids=np.zeros(0, np.int32)),
    ],
    ids=["id too large", "id negative", "too few ids", "too few rows", "NaN", "infinite", "no exemplars"],
)
def test_features_and_ids_that_do_not_fit_together_are_refused(tmp_path, query_set):
    zoo = indexed(tmp_path, query_set)
    assert message(ArtifactError, lambda: read_query_set(zoo)) == f"{index_file(tmp_path)}: {UNFIT}"


@pytest.mark.parametrize(
    "tensors",
    [
        {"points": ("F32", np.zeros((12, 5), "<f4"))},
        {"points": ("F64", np.zeros((12, 5), "<f8")), "task_ids": ("I32", np.zeros(12, "<i4"))},
        {"points": ("F32", np.zeros(12, "<f4")), "task_ids": ("I32", np.zeros(12, "<i4"))},
        {"points": ("F32", np.zeros((12, 5), "<f4")), "task_ids": ("I64", np.zeros(12, "<i8"))},
        plain_tensors(make_query_set()) | {"more": ("U8", np.zeros(1, np.uint8))},
    ],
    ids=["no ids", "float64", "one dimension", "int64 ids", "a third tensor"],
)
def test_other_tensors_than_features_and_ids_are_refused(tmp_path, tensors):
    zoo = write_by_hand(tmp_path, tensors)
    layouts = {name: (dtype, array.ndim) for name, (dtype, array) in tensors.items()}
    assert message(ArtifactError, lambda: read_query_set(zoo)) == (
        f"{index_file(tmp_path)}: holds the tensors {layouts}, expected points and task_ids"
    )


@pytest.mark.parametrize("removed", [["birds"], ["cities"], ["tools"], ["tools", "birds"]])
def test_removing_tasks_removes_only_their_exemplars(tmp_path, removed):
    before = make_query_set()
    zoo = indexed(tmp_path, before)
    old = index_file(tmp_path)
    record = without_tasks(zoo, removed, writer_of(tmp_path))
    old.unlink()
    assert record == as_packed(tmp_path).record.index
    after = read_query_set(zoo_with(tmp_path, record))
    kept = [task for task in TASKS if task not in removed]
    assert after.header == before.header.model_copy(update={"tasks": kept})
    for task in kept:
        rows_before = before.points[before.task_ids == TASKS.index(task)]
        rows_after = after.points[after.task_ids == kept.index(task)]
        np.testing.assert_array_equal(rows_after, rows_before)
    assert len(after.points) == 4 * len(kept)


def test_removing_tasks_that_have_no_exemplars_changes_nothing(tmp_path):
    zoo = indexed(tmp_path, make_query_set())
    before = contents(tmp_path)
    assert without_tasks(zoo, {"planets"}, writer_of(tmp_path)) is zoo.record.index
    assert without_tasks(zoo, set(), writer_of(tmp_path)) is zoo.record.index
    assert contents(tmp_path) == before


def test_removing_all_tasks_removes_the_index(tmp_path):
    assert without_tasks(indexed(tmp_path, make_query_set()), TASKS, writer_of(tmp_path)) is None


def test_a_zoo_without_an_index_has_none_after_a_removal(tmp_path):
    assert without_tasks(zoo_with(tmp_path, None), TASKS, writer_of(tmp_path)) is None


def test_the_refusal_of_a_task_without_exemplars_says_how_to_add_them(tmp_path):
    query_set = make_query_set()
    check_covers(query_set, ["tools", "birds"], Path("zoo"))
    assert message(InputError, lambda: check_covers(query_set, [*TASKS, "planets"], Path("zoo"))) == (
        "zoo: the query index has no exemplars of the task 'planets'; "
        "add them: flexswitch index zoo --add --base BASE --exemplars DIR"
    )
