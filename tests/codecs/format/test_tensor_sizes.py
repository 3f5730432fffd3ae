"""`inspect --storage`: each tensor's bytes beside Shannon's bound, every codec and the published form."""

import json
import math
from pathlib import Path

import pytest
from support.commands import Runner

from flexswitch.codecs.flag4 import Flag4
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.tensor_sizes import tensor_sizes
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.codecs.registry import CODECS
from flexswitch.codecs.storage import store


def bound(entries: int, kept: int, bits: int) -> float:
    share = kept / entries
    mask = -share * math.log2(share) - (1 - share) * math.log2(1 - share) if 0 < share < 1 else 0.0
    return (entries * mask + kept * bits) / 8


@pytest.mark.deep
def test_sizes_are_those_that_each_codec_takes(zoo: Path) -> None:
    artifact = open_artifact(zoo / "red.fsw")
    for name in artifact.header.tensors:
        sparse, sizes = artifact.sparse(name), tensor_sizes(artifact, name)
        layout = sparse.layout
        assert (sizes.entries, sizes.kept) == (layout.entries, layout.kept)
        assert sizes.stored == artifact.header.tensors[name].size
        assert sizes.shannon == pytest.approx(bound(layout.entries, layout.kept, layout.bits))
        assert sizes.published == len(Flag4().encode(sparse))
        assert set(sizes.codecs) == set(CODECS)
        for codec, size in sizes.codecs.items():
            form = store(sparse, codec)
            assert size == sum(len(b.data) for b in form.blocks) + (len(form.rows.data) if form.rows else 0)


@pytest.mark.deep
def test_a_zoo_is_summed_up_over_its_tasks(zoo: Path, flexswitch: Runner) -> None:
    found = flexswitch("inspect", "zoo", "--storage", "--json")
    assert found.status == 0
    document = json.loads(found.out)
    each = [sizes for task in document["tasks"].values() for sizes in task.values()]
    assert set(document["tasks"]) == {"red", "blue"}
    assert document["total"]["stored"] == sum(sizes["stored"] for sizes in each)
    assert document["total"]["shannon"] == pytest.approx(sum(sizes["shannon"] for sizes in each))
    assert document["total"]["codecs"]["rice"] == sum(sizes["codecs"]["rice"] for sizes in each)
    packed = open_zoo(zoo / "zoo")
    files = [packed.task_file(task).stat().st_size for task in ("red", "blue")]
    assert document["file_bytes"] == sum(files)


def test_the_table_has_a_line_a_tensor_and_a_total(zoo: Path, flexswitch: Runner) -> None:
    found = flexswitch("inspect", "red.fsw", "--storage", "--jobs", 2)
    assert found.status == 0
    lines = found.out.splitlines()
    assert lines[0].split()[:7] == ["tensor", "density", "bytes", "Shannon", "of", "it", "2025"]
    assert [name for name in CODECS if name not in lines[0]] == []
    assert [line.split()[0] for line in lines if line.strip(" ─")][1:5] == [
        "embed.weight",
        "layer.bias",
        "layer.weight",
        "total",
    ]
    assert lines[-1].startswith("red.fsw: tensors ")
    assert "of Shannon's bound and 1/" in lines[-1]


def test_storage_of_anything_else_is_refused(zoo: Path, flexswitch: Runner) -> None:
    found = flexswitch("inspect", "base.safetensors", "--storage")
    assert (found.status, found.error) == (1, "base.safetensors: --storage needs an artifact (.fsw) or a zoo")


def test_pack_small_is_no_larger_than_fast_and_decodes_to_the_same(zoo: Path, flexswitch: Runner) -> None:
    command = ("pack", "red.fsw", "blue.fsw", "-o")
    assert flexswitch(*command, "small", "--effort", "small", "--jobs", 1, "--memory", "1MB").status == 0
    assert flexswitch(*command, "again", "--effort", "small", "--jobs", 3).status == 0
    packed = [open_zoo(zoo / name) for name in ("small", "again", "zoo")]
    for task in ("red", "blue"):
        small, again, fast = (each[task] for each in packed)
        assert small.path.read_bytes() == again.path.read_bytes()
        for name in fast.header.tensors:
            assert small.header.tensors[name].size <= fast.header.tensors[name].size
            assert (small.sparse(name).mask == fast.sparse(name).mask).all()
            assert (small.sparse(name).levels == fast.sparse(name).levels).all()


def test_an_unknown_effort_is_refused(zoo: Path, flexswitch: Runner) -> None:
    found = flexswitch("pack", "red.fsw", "-o", "other", "--effort", "smal")
    assert found.status == 2
    assert "invalid value for '--effort'" in found.err
    assert not (zoo / "other").exists()


@pytest.mark.parametrize("memory", ["0", "much", "1XB"])
def test_a_memory_that_is_no_size_is_refused(zoo: Path, flexswitch: Runner, memory: str) -> None:
    found = flexswitch("pack", "red.fsw", "-o", "other", "--memory", memory)
    expected = f"size '{memory}': expected a number of bytes above 0, such as 5GB, 2.5KB or 12345"
    assert (found.status, found.error) == (2, expected)


def test_compress_gives_the_same_bytes_on_any_threads_and_leaves_no_side_file(
    zoo: Path, flexswitch: Runner
) -> None:
    command = (
        "compress",
        "red.safetensors",
        "--base",
        "base.safetensors",
        "--name",
        "red",
        "--method",
        "t-switch",
    )
    assert flexswitch(*command, "-o", "one.fsw", "--jobs", 1).status == 0
    assert flexswitch(*command, "-o", "three.fsw", "--jobs", 3, "--memory", "1KB", "--resume").status == 0
    assert (
        (zoo / "one.fsw").read_bytes() == (zoo / "three.fsw").read_bytes() == (zoo / "red.fsw").read_bytes()
    )
    assert list(zoo.glob("*.resume")) == []
