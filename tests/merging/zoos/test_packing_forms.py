"""Tensors are packed by any codec, with any effort, on any number of threads."""

import numpy as np
import pytest
from support.artifact_files import HEADER
from support.sparse_tensors import assert_same, sparse_tensor
from support.tiny_models import contents, state_artifacts

from flexswitch.codecs.format.artifact_writer import ArtifactWriter, packed_tensor
from flexswitch.codecs.format.records import MethodRecord
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.codecs.storage import store
from flexswitch.merging.zoos.pack import Form, create_zoo


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Artifacts of one base by task."""
    return state_artifacts(tmp_path_factory.mktemp("made"), ["birds", "cities", "tools"])


def create(path, files, form):
    create_zoo(path, files, form, None, False, lambda task: None)


@pytest.mark.parametrize("codec", ["raw", "bitmask", "flag4", "rice", "context"])
def test_every_tensor_is_stored_by_the_codec_asked_for(tmp_path, made, codec):
    create(tmp_path / "zoo", [made["birds"]], Form(codec))
    header = open_zoo(tmp_path / "zoo")["birds"].header
    assert {block.codec for record in header.tensors.values() for block in record.stored} == {codec}


def test_more_effort_makes_a_zoo_no_larger_and_changes_no_weight(tmp_path, made):
    create(tmp_path / "fast", list(made.values()), Form())
    create(tmp_path / "small", list(made.values()), Form(effort="small"))
    fast, small = open_zoo(tmp_path / "fast"), open_zoo(tmp_path / "small")
    for task in fast:
        sizes = [sum(record.size for record in zoo[task].header.tensors.values()) for zoo in (fast, small)]
        assert sizes[1] <= sizes[0]
        for name in fast[task].header.tensors:
            assert_same(small[task].sparse(name), fast[task].sparse(name))


@pytest.mark.parametrize("effort", ["fast", "small"])
def test_threads_and_memory_change_no_byte(tmp_path, made, effort):
    create(tmp_path / "zoo", list(made.values()), Form(effort=effort, jobs=1))
    before = contents(tmp_path / "zoo")
    for jobs, memory in ((2, 1 << 30), (3, 0), (4, 300)):
        create(tmp_path / str(jobs), list(made.values()), Form("auto", effort, jobs, memory))
        assert contents(tmp_path / str(jobs)) == before


def striped_artifact(path, settings):
    """Writes an artifact whose one tensor `small` stores in fewer bytes than `fast`."""
    marked = np.random.default_rng(0).random((256, 64)) < np.linspace(0.001, 0.5, 64)
    kept = np.flatnonzero(marked).tolist()
    sparse = sparse_tensor((256, 64), kept, [1] * len(kept), 1)
    header = HEADER.model_copy(update={"method": MethodRecord(name="flexswitch", settings=settings)})
    with ArtifactWriter(path) as writer:
        writer.add_tensor("w", packed_tensor(sparse, store(sparse, effort="small"), 1.0, "F32"))
        writer.finish(header)
    return path


def tensor_bytes(zoo, file, form):
    create(zoo, [file], form)
    return open_zoo(zoo)["sst2"].header.tensors["w"].size


@pytest.mark.parametrize(
    ("settings", "own"),
    [({}, "fast"), ({"effort": "fast"}, "fast"), ({"effort": "small"}, "small"),
     ({"effort": "huge"}, "fast"), ({"effort": 3}, "fast")],
)  # fmt: skip
def test_an_artifact_is_packed_with_the_effort_it_was_compressed_with(tmp_path, settings, own):
    file = striped_artifact(tmp_path / "sst2.fsw", settings)
    sizes = {
        effort: tensor_bytes(tmp_path / effort, file, Form(effort=effort)) for effort in ("fast", "small")
    }
    assert sizes["small"] < sizes["fast"]
    assert tensor_bytes(tmp_path / "own", file, Form()) == sizes[own]
