"""A zoo of more tasks than a process usually may open files is read."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.artifact_files import stored_form
from support.sparse_tensors import BASE, header, sparse_tensor, write_artifact
from support.zoo_files import writer_of

from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.zoo import ZooRecord
from flexswitch.codecs.format.zoo_writer import pack_task
from flexswitch.codecs.registry import stored_codec

READER = """
import sys
from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import open_zoo
try:
    print(len({len(artifact.sparse("weight").levels) for artifact in open_zoo(sys.argv[1]).values()}))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(("most", "expected"), [(1024, "1"), (64, "raise the limit with `ulimit -n`")])
def test_as_many_files_are_opened_as_the_system_lets(tmp_path: Path, most: int, expected: str) -> None:
    tensors = {"weight": (sparse_tensor((4, 9), [3, 11], [1, 0], 1), 0.5, stored_codec("raw", {}))}
    writer, tasks = writer_of(tmp_path), {}
    for number in range(80):
        artifact = open_artifact(write_artifact(tmp_path / "a.fsw", tensors, {}, header(f"t{number}")))
        tasks[f"t{number}"] = pack_task(artifact, writer, [stored_form(artifact, "weight")])
    writer.commit(ZooRecord(base=BASE, tasks=tasks))
    found = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, most)),
    )  # fmt: skip
    assert found.stdout.strip().endswith(expected)
