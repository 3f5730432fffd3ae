"""What weight decay did is stored as one factor a matrix, and everything that reads the artifact adds it."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.artifact_files import message
from support.checkpoints import MemoryCheckpoint, State, extracted, file_pair, memory_pair
from support.checkpoints import message as refusal
from support.commands import Runner
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError, TargetSizeError
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, packed_sum, packed_tensor
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.records import SharedRecord
from flexswitch.codecs.storage import store
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.plan import Training
from flexswitch.merging.flex_switch.delta_rows import nothing_kept
from flexswitch.merging.flex_switch.weight_decay import RestVector, fitted_factor, fitted_factors
from flexswitch.merging.switching.delta_matrix import cpu_matrix, untransposed
from flexswitch.merging.switching.multiple_matrix import MultipleMatrix
from flexswitch.merging.switching.sum_matrix import SumMatrix, base_factor
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.add_task import add_task
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.live_weights import LiveWeights
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.task_vector import delta_tensor

GENERATOR = torch.Generator().manual_seed(7)
DECAY = 0.9


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


BASE: State = {
    "table.weight": normal(400, 16),
    "first.weight": normal(24, 16),
    "first.bias": normal(24),
    "second.weight": normal(8, 24),
    "second.bias": normal(8),
    "unused.weight": normal(30, 20),
}


def tuned(steps: int = 300) -> State:
    """Returns weights of which the matrices decayed step by step; the second moved, and 40 rows of the table."""
    found = {}
    for name, base in BASE.items():
        weights = base.clone()
        if weights.dim() > 1:
            for _ in range(steps):
                weights *= DECAY ** (1 / steps)
        found[name] = weights
    draw = torch.Generator().manual_seed(8)
    found["table.weight"][:40] += 0.1 * torch.randn((40, 16), generator=draw)
    for name in ("first.weight", "first.bias", "second.weight", "second.bias"):
        found[name] += 0.05 * torch.randn(found[name].shape, generator=draw)
    return found


def made(folder: Path, **settings: object) -> Artifact:
    """Returns the artifact of the pair by FlexSwitch without data, in 3 kB."""
    pair, path = file_pair(folder, BASE, tuned()), folder / "t.fsw"
    given = {"objective": "none", "target_size": "3KB", "effort": "fast", **settings}
    compress(pair, path, "t", "flexswitch", given, overwrite=True, training=Training(base=pair.base))
    return open_artifact(path)


def plain(artifact: Artifact, name: str) -> np.ndarray:
    """Returns a tensor's delta by FORMAT.md, in float64 from float32 numbers."""
    record, sparse = artifact.header.tensors[name], artifact.sparse(name)
    steps = 2**record.bits - 1
    kept = np.zeros(sparse.layout.entries)
    places = np.unpackbits(sparse.mask, count=len(kept), bitorder="little").astype(bool)
    kept[places] = record.scale * (2 * sparse.levels.astype(np.float64) - steps) / max(1, steps)
    return kept.reshape(record.shape) + record.base_factor * BASE[name].double().numpy()


def test_the_factor_is_that_of_the_decay_whatever_moves_beside_it() -> None:
    pair = memory_pair(BASE, tuned())
    found = fitted_factors(pair.base, pair)
    assert set(found) == {name for name, base in BASE.items() if base.dim() > 1}
    assert found["table.weight"] == pytest.approx(DECAY - 1, rel=1e-4)
    assert found["second.weight"] == pytest.approx(DECAY - 1, rel=0.1)
    rest = RestVector(pair.base, pair, found)
    table = delta_tensor(rest, "table.weight")
    assert (table[40:] == 0).all()
    assert (table[:40] != 0).float().mean() > 0.99
    expected = tuned()["second.weight"] - BASE["second.weight"] * np.float32(1 + found["second.weight"])
    torch.testing.assert_close(delta_tensor(rest, "second.weight"), expected, rtol=0, atol=1e-6)
    assert torch.equal(delta_tensor(rest, "second.bias"), delta_tensor(pair, "second.bias"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_have_no_rest_but_rounding(dtype: torch.dtype) -> None:
    base, found = ({name: each.to(dtype) for name, each in state.items()} for state in (BASE, tuned()))
    pair = memory_pair(base, found)
    factors = fitted_factors(pair.base, pair)
    assert factors["unused.weight"] == pytest.approx(DECAY - 1, rel=1e-2)
    assert (delta_tensor(RestVector(pair.base, pair, factors), "unused.weight") == 0).float().mean() > 0.98


@pytest.mark.parametrize(
    ("base", "found"),
    [
        pytest.param(normal(30, 30), normal(30, 30), id="nothing in common"),
        pytest.param(torch.zeros(3, 4), torch.ones(3, 4), id="a base of zeros"),
        pytest.param(torch.full((2, 2), torch.inf), torch.full((2, 2), torch.inf), id="infinities"),
        pytest.param(torch.zeros(0, 4), torch.zeros(0, 4), id="no entries"),
    ],
)
def test_other_changes_have_no_factor(base: Tensor, found: Tensor) -> None:
    pair = memory_pair({"w": base}, {"w": base + 0.01 * found})
    assert fitted_factor(pair.base, pair, "w") == 0


def test_an_artifact_of_a_decayed_model_is_nearer_and_has_the_size(tmp_path: Path) -> None:
    def error(artifact: Artifact) -> float:
        found = restore(MemoryCheckpoint(BASE), ArtifactVector(artifact, MemoryCheckpoint(BASE)))
        return float(sum((found[name] - weights).square().sum() for name, weights in tuned().items()))

    decayed = made(tmp_path)
    assert decayed.file_bytes() <= 3000
    assert decayed.header.tensors["unused.weight"].kept == 0
    assert error(decayed) < 0.1 * error(made(tmp_path, weight_decay=False))
    tables = [made(tmp_path, target_size=size).file_bytes() for size in ("1500", "2KB")]
    assert [1400 < tables[0] <= 1500, 1900 < tables[1] <= 2000] == [True, True]


@pytest.mark.parametrize("over", [1, 60, 300])
def test_the_least_size_is_met_and_a_smaller_one_refused(tmp_path: Path, over: int) -> None:
    refused = refusal(TargetSizeError, lambda: made(tmp_path, target_size="200"))
    least = int(refused.split("take ")[1].split()[0].replace(",", ""))
    assert made(tmp_path, target_size=f"{least + over}").file_bytes() <= least + over


def test_a_run_with_the_base_does_not_go_on_from_one_without(tmp_path: Path) -> None:
    pair, path = file_pair(tmp_path, BASE, tuned()), tmp_path / "t.fsw"
    file = extracted(pair, tmp_path / "t.tv.safetensors")
    given = {"objective": "none", "target_size": "3KB"}

    def stop(tensor: str) -> None:
        if tensor == "table.weight":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(file, path, "t", "flexswitch", given, overwrite=True, on_tensor=stop, resume=True)
    with_base = Training(base=pair.base)
    again = partial(compress, file, path, "t", "flexswitch", given, True, resume=True, training=with_base)
    assert "other settings" in refusal(InputError, again)


def test_everything_that_reads_it_adds_the_multiple(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    base, zoo = MemoryCheckpoint(BASE), pack([tmp_path / "t.fsw"], tmp_path / "zoo", effort="small")
    for read in (artifact, zoo["t"]):
        vector = ArtifactVector(read, base)
        for name in vector.tensors:
            np.testing.assert_allclose(delta_tensor(vector, name), plain(artifact, name), rtol=0, atol=1e-6)
            assert vector.is_sparse(name) == (BASE[name].dim() == 1)
    expected = {
        name: BASE[name].double() + torch.from_numpy(plain(artifact, name)) for name in vector.tensors
    }
    for found in (restore(tmp_path / "base.safetensors", artifact), _live(artifact), _merged(tmp_path)):
        for name, weights in expected.items():
            torch.testing.assert_close(found[name].double(), weights, rtol=0, atol=1e-6)


def _live(artifact: Artifact) -> State:
    weights = {name: tensor.clone() for name, tensor in BASE.items()}
    add_task(weights, artifact)
    return weights


def _merged(folder: Path) -> State:
    """Returns the weights of a mean of the task and itself."""
    files = [folder / "t.fsw", folder / "other.fsw"]
    files[1].write_bytes(files[0].read_bytes())
    out = folder / "merged"
    merge([files[0], f"other={files[1]}"], out, base=folder / "base.safetensors", method="average")
    return load_file(next(out.glob("*.safetensors")))


class Net(nn.Module):
    """Looks tokens up and puts them through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(400, 16), nn.Linear(16, 24), nn.Linear(24, 8)
        self.unused = nn.Linear(20, 30, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(self.table(ids)).tanh())
        return found


@pytest.mark.parametrize("engine", ["auto", "fused", "merged", "grouped"])
def test_a_switched_model_adds_the_multiples(tmp_path: Path, engine: str) -> None:
    artifact, net = made(tmp_path), Net().eval()
    net.load_state_dict(BASE)
    model = SwitchedModel(net, {"t": artifact}, engine=engine)
    ids = torch.randint(0, 400, (6, 5), generator=torch.Generator().manual_seed(1))
    shares = [1.0, 0.0, 0.5, 1.0, 0.25, 0.0]
    with torch.inference_mode():
        found = model(ids, weights=torch.tensor(shares)[:, None])
        for row, share in enumerate(shares):
            net.load_state_dict({
                name: (base.double() + share * torch.from_numpy(plain(artifact, name))).float()
                for name, base in BASE.items()
            })  # fmt: skip
            torch.testing.assert_close(found[row : row + 1], net(ids[row : row + 1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", ["2KB", "9KB"])
@pytest.mark.parametrize("transposed", [False, True])
def test_its_matrix_holds_the_entries_alone(tmp_path: Path, transposed: bool, size: str) -> None:
    artifact, ids = made(tmp_path, target_size=size, form="sparse"), np.array([3, 50, 3, 399])
    vector, places = ArtifactVector(artifact, LiveWeights(BASE)), np.array([0, 2, 3])
    factors = np.array([1.0, -2.0, 0.5], np.float32)
    for name in ("table.weight", "second.weight", "unused.weight"):
        matrix = cpu_matrix(vector, name, transposed, 1.0)
        assert matrix.nbytes < 2 * BASE[name].nbytes
        whole = plain(artifact, name)
        np.testing.assert_allclose(matrix.dense(), whole, rtol=0, atol=1e-6)
        weights = np.ones(whole.shape, np.float32)
        matrix.add_to(weights, 0.5)
        np.testing.assert_allclose(weights, 1 + 0.5 * whole, rtol=0, atol=1e-6)
        inner = untransposed(matrix)
        assert isinstance(inner, SumMatrix)
        multiple = inner.parts[-1]
        assert isinstance(multiple, MultipleMatrix)
        assert multiple.base.untyped_storage().data_ptr() == BASE[name].untyped_storage().data_ptr()
        assert base_factor(inner) == multiple.factor
        multiplied = inner.rest.dense().numpy() + multiple.factor * multiple.base.numpy()
        np.testing.assert_allclose(multiplied, whole.T if transposed else whole, rtol=0, atol=1e-6)
        if name == "table.weight" and not transposed:
            rows = np.zeros((4, 16), np.float32)
            inner.add_rows(ids, places, factors, rows)
            np.testing.assert_allclose(rows[places], factors[:, None] * whole[ids[places]], rtol=0, atol=1e-6)


def test_without_the_base_nothing_is_added_by_guess(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    weights = {name: tensor.clone() for name, tensor in BASE.items()}
    assert "give base=" in refusal(InputError, lambda: add_task(weights, artifact, check_base=False))
    assert all(torch.equal(weights[name], BASE[name]) for name in BASE)
    add_task(weights, artifact, check_base=False, base=tmp_path / "base.safetensors")
    for name in BASE:
        torch.testing.assert_close(
            weights[name], BASE[name] + torch.from_numpy(plain(artifact, name)).float()
        )


@pytest.mark.parametrize(("shape", "rule"), [((4, 3), "sum"), ((12,), None)])
def test_a_multiple_where_none_can_be_is_refused(tmp_path: Path, shape: tuple[int, ...], rule: str) -> None:
    sparse, path = nothing_kept(shape), tmp_path / "t.fsw"
    header = made(tmp_path).header
    shared = SharedRecord(sha256="ab" * 32, rule=rule) if rule else None
    with ArtifactWriter(path) as writer:
        writer.add_tensor("w", packed_sum([packed_tensor(sparse, store(sparse), 0.0, "F32")], -0.5))
        writer.finish(header.model_copy(update={"shared": shared}))
    assert "a multiple of the base's" in message(path)


@pytest.mark.parametrize(("more", "is_said"), [((), True), (("--set", "weight_decay=false"), False)])
def test_a_file_without_the_base_is_said_to_keep_what_decayed(
    flexswitch: Runner, tmp_path: Path, more: tuple[str, ...], is_said: bool
) -> None:
    extracted(memory_pair(BASE, tuned()), tmp_path / "t.tv.safetensors")
    command = ("compress", tmp_path / "t.tv.safetensors", "-o", tmp_path / "t.fsw", "--target-size", "3KB")
    found = flexswitch(*command, "--set", "objective=none", *more)
    assert (found.status, "what weight decay did is compressed" in found.err) == (0, is_said)
