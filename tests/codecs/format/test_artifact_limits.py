"""A small artifact cannot stand for much memory or time: its table, tensors and extras have limits."""

import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from support.artifact_files import (
    EXTRAS,
    HEADER,
    ROWS,
    Document,
    damage_table,
    frame,
    message,
    put_table,
)
from support.sparse_tensors import write_artifact

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.artifact_table import most_table_bytes
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor
from flexswitch.codecs.format.records import BlockRecord, TensorRecord

BLOCK = {"codec": "raw", "kept": 0, "size": 0, "crc32": "00000000"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "sst2.fsw", ROWS, EXTRAS, HEADER)


@pytest.mark.parametrize(
    ("shape", "entries"), [([1 << 34, 2], 1 << 35), ([(1 << 34) + 1], (1 << 34) + 1), ([1 << 62, 1 << 62], 1 << 124)]
)  # fmt: skip
def test_a_tensor_of_more_entries_than_any_model_has_is_refused(
    path: Path, shape: list[int], entries: int
) -> None:
    damage_table(path, lambda table: table["encoder.weight"].update(shape=shape))
    expected = f"of shape {shape} has {entries:,} entries, expected 17,179,869,184 at most"
    assert message(path) == f"tensor 'encoder.weight' {expected}"


def test_row_flags_for_more_rows_than_a_block_has_are_refused(path: Path) -> None:
    damage_table(path, lambda table: table["words"].update(shape=[(1 << 20) + 1, 2, 3]))
    assert message(path) == "tensor 'words' has row flags for 3 of 1048577 rows; its header is damaged"


def test_a_table_of_countless_blocks_is_not_even_parsed(path: Path) -> None:
    document = {"tensors": {"w": {"shape": [1 << 34], "scale": 1.0, "blocks": [BLOCK] * 200_000}}}
    table = frame(json.dumps(document).encode())
    assert len(table) < 100_000
    put_table(path, table)
    began = time.process_time()
    assert message(path).startswith("its table of tensors does not decode: a zstandard frame of")
    assert time.process_time() - began < 2


@pytest.mark.deep
def test_the_largest_table_that_is_read_takes_little_time_and_memory(path: Path) -> None:
    document: Document = {"extras": {}, "tensors": {"w": {"shape": [0], "scale": 1.0, "blocks": []}}}
    document["tensors"]["w"]["blocks"] = [BLOCK] * (most_table_bytes(0) // (len(json.dumps(BLOCK)) + 3))
    put_table(path, frame(json.dumps(document).encode()))
    script = (
        "import resource, sys\n"
        "from flexswitch.codecs.format.container import open_artifact\n"
        "from flexswitch.codecs.errors import ArtifactError\n"
        "try: open_artifact(sys.argv[1])\n"
        "except ArtifactError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    limit = partial(resource.setrlimit, resource.RLIMIT_CPU, (60, 60))
    command = [sys.executable, "-c", script, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=limit)
    line, kilobytes = run.stdout.splitlines()
    assert "its table lists 0 bytes of data" in line
    assert int(kilobytes) < 800_000


@pytest.mark.deep
def test_a_table_that_readers_would_refuse_is_not_written(tmp_path: Path) -> None:
    block = BlockRecord(codec="raw", kept=0, size=0, crc32="00000000")
    record = TensorRecord(shape=[200_000 << 20], scale=1.0, blocks=[block] * 200_000)

    def write() -> None:
        with ArtifactWriter(tmp_path / "a.fsw") as writer:
            writer.add_tensor("w", PackedTensor(record, b""))
            writer.finish(HEADER)

    with pytest.raises(InputError, match="leave tensors that did not change out with --exclude"):
        write()
