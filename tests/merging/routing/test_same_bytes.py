"""An index is the same file whatever the number of threads and the processor's instructions.

`python test_same_bytes.py FOLDER` prints the digests of the indexes, in the process that the test compares with.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.laws import settings
from support.tiny_models import image_toy, text_toy

from flexswitch.codecs.format.zoo import file_sha256, open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.float64_computation import Float64Computation
from flexswitch.merging.routing.grid import on_grid
from flexswitch.merging.routing.index_options import IndexOptions
from flexswitch.merging.routing.indexing import index_zoo

PLAIN = IndexOptions(per_task=8, rank=4)
CASES = {
    "text": [
        replace(PLAIN, features="shape+auto"),
        replace(PLAIN, features="layers:0+2", normalise="standardised", seed=1),
        replace(PLAIN, features="average:input", metric="euclidean", dtype="bfloat16"),
    ],
    "images": [PLAIN, replace(PLAIN, features="pooled", normalise="none", metric="euclidean")],
}


def toys(folder: Path) -> dict[str, tuple[Path, Path, Path]]:
    """Returns (zoo, base, exemplars) of each kind of model."""
    return {
        kind: (folder / kind / "packed" / "zoo", folder / kind / "base", folder / kind / "data")
        for kind in CASES
    }


def digests(folder: Path) -> list[str]:
    """Returns the SHA-256 of the index of each case."""
    found = []
    for kind, (path, base, data) in toys(folder).items():
        for options in CASES[kind]:
            index_zoo(path, str(base), data, options, True, lambda task: None)
            found.append(file_sha256(open_zoo(path).index_file()))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a zoo for each kind of model."""
    folder = tmp_path_factory.mktemp("toys")
    text_toy(folder / "text", test_count=1)
    image_toy(folder / "images")
    return folder


@pytest.mark.deep
def test_threads_and_instructions_do_not_change_an_index(folder: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = digests(folder)
    finally:
        torch.set_num_threads(before)
    assert len(set(one)) == len(one)
    environment = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, __file__, str(folder)]
    path = os.pathsep.join(each for each in sys.path if each)
    other = subprocess.run(
        command,
        env=os.environ | environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(other.stdout.splitlines()[-1]) == one


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=6, max_size=6),
    bits=st.integers(1, 22),
    power=st.integers(-20, 20),
)
@settings(200)
def test_the_grid_is_a_fraction_of_the_largest_number_of_a_part(
    values: list[float], bits: int, power: int
) -> None:
    rows = torch.tensor(values, dtype=torch.float64).reshape(1, 6)
    found = on_grid(rows, bits, parts=2)
    for part, rounded in zip(rows.reshape(2, 3), found.reshape(2, 3), strict=True):
        largest = float(part.abs().max())
        step = 2.0 ** (np.floor(np.log2(largest)) - bits) if largest else 1.0
        assert (part - rounded).abs().max() <= step / 2
        assert (rounded / step == (rounded / step).round()).all()
    assert torch.equal(found.float().double(), found)
    assert not torch.signbit(found[found == 0]).any()
    assert torch.equal(on_grid(rows * 2.0**power, bits, parts=2), found * 2.0**power)


@pytest.mark.parametrize("spec", ["pooled", "layers:0+2"])
@pytest.mark.parametrize("kind", CASES)
def test_exemplars_are_computed_in_float64_with_the_float32_weights(
    folder: Path, kind: str, spec: str
) -> None:
    path, base, _ = toys(folder)[kind]
    adapter = get_adapter(open_checkpoint(str(base)), open_zoo(path).record.adapter)
    inputs = ["A bird sings", "in the"] if kind == "text" else np.ones((2, 3, 8, 8), np.float32)
    encoder = adapter.encoder()
    with torch.inference_mode():
        with Float64Computation():
            found = adapter.features(encoder, adapter.batch(inputs), spec)
        assert {each.dtype for each in encoder.parameters()} == {torch.float32}
        batch = {
            name: value.double() if value.is_floating_point() else value
            for name, value in adapter.batch(inputs).items()
        }
        expected = adapter.features(encoder.double(), batch, spec)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)
    assert (found - found.float()).abs().max() > 1e-10


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(json.dumps(digests(Path(sys.argv[1]))))
