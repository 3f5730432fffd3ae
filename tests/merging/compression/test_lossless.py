"""`lossless`: the fine-tuned checkpoint comes back bit for bit, whatever its dtypes, and only with its base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.artifact_files import damage_whole_table
from support.checkpoints import (
    State,
    assert_same_state,
    compressed,
    extracted,
    file_pair,
    flip_bit,
    job,
    memory_pair,
    message,
    save_model,
)
from support.deltas import normal
from torch import Tensor

from flexswitch.codecs.errors import ArtifactError, DecodeError, InputError, UsageError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.compression.compress import compress as compress_vector
from flexswitch.merging.compression.lossless import lossless
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.add_task import add_task
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.task_vector import delta_tensor
from flexswitch.merging.zoos.verify import verify

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


def weights(dtype: torch.dtype, seed: int = 1, shape: tuple[int, ...] = (24, 130)) -> Tensor:
    return torch.from_numpy(normal(shape, seed)).to(torch.float32).to(dtype)


def tuned(base: Tensor) -> Tensor:
    """Returns weights of which a third moved, and some are odd: NaN with a payload, −0, infinite, huge."""
    moved = base.to(torch.float32)
    moved[::3] += 0.01 * torch.from_numpy(normal(tuple(moved[::3].shape), 9))
    flat = moved.to(base.dtype).view(-1)
    width = flat.element_size()
    flat.view(torch.uint8)[: 4 * width] = 0xFF
    flat.view(torch.uint8)[8 * width - 1] = 0x80
    flat[100:104] = torch.tensor([-1.0, 1e30, -1e30, float("inf")]).to(base.dtype)
    return flat.view(base.shape)


def odd_pair() -> tuple[State, State]:
    base = {f"w.{dtype}": weights(dtype) for dtype in FLOATS}
    finetuned = {name: tuned(tensor) for name, tensor in base.items()}
    for dtype in INTEGERS:
        base[f"n.{dtype}"] = torch.arange(-70, 130).to(dtype)
        finetuned[f"n.{dtype}"] = torch.arange(-70, 130).flip(0).to(dtype)
    same = {"same": torch.ones(5), "same.n": torch.arange(3), "empty": torch.ones(0, 3)}
    own = {"scalar": torch.tensor(-0.0), "head.weight": weights(torch.float32, 4)}
    return base | same | {"scalar": torch.tensor(1.0)}, finetuned | same | own


@pytest.mark.deep
def test_every_bit_of_every_dtype_comes_back(tmp_path: Path) -> None:
    base, finetuned = odd_pair()
    pair = memory_pair(base, finetuned)
    artifact = compressed(pair, tmp_path / "t.fsw", "lossless")
    assert_same_state(dict(restore(pair.base, artifact)), finetuned)
    assert set(artifact.header.extras) == {"head.weight"}
    assert {"same", "same.n", "empty"}.isdisjoint(artifact.header.exact)


@pytest.mark.parametrize(
    ("before", "after"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")]
)
def test_weights_of_another_dtype_than_the_base_s_come_back(tmp_path: Path, before: str, after: str) -> None:
    old, new = getattr(torch, before), getattr(torch, after)
    base = {"same": torch.ones(4, dtype=old), "w": weights(old)}
    finetuned = {"same": torch.ones(4, dtype=new), "w": weights(new)}
    finetuned["w"][3] *= 1.01
    pair = memory_pair(base, finetuned)
    artifact = compressed(pair, tmp_path / "t.fsw", "lossless")
    assert_same_state(dict(restore(pair.base, artifact)), finetuned)


def test_unchanged_weights_take_next_to_nothing(tmp_path: Path) -> None:
    base = weights(torch.bfloat16, shape=(512, 2048))
    moved = base.view(torch.int16).clone()
    moved.view(-1)[::100] += 1
    pair = memory_pair({"w": base}, {"w": moved.view(torch.bfloat16)})
    artifact = compressed(pair, tmp_path / "t.fsw", "lossless")
    assert artifact.path.stat().st_size < 2 * base.numel() / 100  # two bytes for each changed entry


def test_neither_threads_nor_resuming_change_the_bytes(tmp_path: Path) -> None:
    pair = memory_pair(*odd_pair())
    one, four = tmp_path / "one.fsw", tmp_path / "four.fsw"
    compress_vector(pair, one, "t", "lossless", {}, False, jobs=1)

    def stop(tensor: str) -> None:
        if tensor.startswith("w."):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_vector(pair, four, "t", "lossless", {}, False, stop, jobs=4, resume=True)
    compress_vector(pair, four, "t", "lossless", {}, False, jobs=4, resume=True)
    assert one.read_bytes() == four.read_bytes()


def test_a_zoo_and_merge_restore_the_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    base = {"a.weight": weights(torch.bfloat16), "b": weights(torch.float32)}
    finetuned = {name: tuned(tensor) for name, tensor in base.items()} | {"head": weights(torch.float16, 5)}
    places = [save_model(tmp_path / name, state) for name, state in (("base", base), ("fine", finetuned))]
    artifact = compress(places[1], tmp_path / "t.fsw", base=places[0], method="lossless")
    zoo = pack([artifact.path], tmp_path / "zoo", effort="small")
    merge([zoo.path], tmp_path / "out", base=places[0], task="t")
    assert_same_state(dict(restore(places[0], open_zoo(zoo.path)["t"])), finetuned)
    again = compress(tmp_path / "out", tmp_path / "again.fsw", base=places[0], method="lossless", name="t")
    assert again.path.read_bytes() == artifact.path.read_bytes()


def test_the_delta_is_the_difference_of_the_two_checkpoints(tmp_path: Path) -> None:
    base = {"w": weights(torch.bfloat16, shape=(60, 33))}
    finetuned = {"w": (base["w"].float() + 0.01 * weights(torch.float32, 2, (60, 33))).to(torch.bfloat16)}
    pair = memory_pair(base, finetuned)
    artifact = compressed(pair, tmp_path / "t.fsw", "lossless")
    vector = ArtifactVector(artifact, pair.base)
    expected = finetuned["w"].float() - base["w"].float()
    assert torch.equal(delta_tensor(vector, "w"), expected)
    assert [len(block) for block in vector.blocks("w", 700)] == [700, 700, 580]
    half = restore(pair.base, artifact, 0.5)["w"]
    assert torch.equal(half, (base["w"].float() + 0.5 * expected).to(torch.bfloat16))


def test_it_is_added_to_a_live_model(tmp_path: Path) -> None:
    base, finetuned = odd_pair()
    pair = memory_pair(base, finetuned)
    artifact = compressed(pair, tmp_path / "t.fsw", "lossless")
    live = {name: tensor.clone() for name, tensor in base.items()}
    add_task(live, artifact)
    assert_same_state(live, {name: finetuned[name] for name in base})
    assert "the base has other weights" in message(
        DecodeError, lambda: add_task(live, artifact, check_base=False)
    )


def test_a_switched_model_answers_as_the_fine_tuned_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    modules = [torch.nn.Sequential(torch.nn.Linear(9, 12), torch.nn.Linear(12, 4)) for _ in range(2)]
    states = [module.state_dict() for module in modules]
    artifact = compressed(memory_pair(*states), tmp_path / "t.fsw", "lossless")
    inputs = torch.from_numpy(normal((3, 9), 8)).to(torch.float32)
    found = SwitchedModel(modules[0], {"t": artifact})(inputs, weights=torch.ones(3, 1))
    torch.testing.assert_close(found, modules[1](inputs))


def test_another_base_and_damage_are_refused(tmp_path: Path) -> None:
    base, finetuned = {"w": weights(torch.float32)}, {"w": weights(torch.float32) * 1.01}
    pair = file_pair(tmp_path, base, finetuned)
    artifact = compressed(pair, tmp_path / "t.fsw", "lossless")
    assert "3,120" not in verify(artifact.path, None, lambda name: None)[0]
    other = memory_pair({"w": base["w"] + 1}, finetuned).base
    assert "is not the base" in message(InputError, lambda: restore(other, artifact))
    assert "block 0" in message(DecodeError, lambda: list(ArtifactVector(artifact, other).numbers("w")))
    data = artifact.packed_exact("w").data
    flip_bit(artifact.path, artifact.path.read_bytes().index(data) + len(data) // 2)
    assert "damaged" in message(DecodeError, lambda: open_artifact(artifact.path).packed_exact("w"))


@pytest.mark.parametrize("factor", [1 << 23, -(1 << 23), 10**30])
def test_a_form_with_wrong_settings_is_found_without_the_base(tmp_path: Path, factor: int) -> None:
    base, finetuned = {"w": weights(torch.float32)}, {"w": weights(torch.float32) * 1.01}
    path = compressed(memory_pair(base, finetuned), tmp_path / "t.fsw", "lossless").path

    def change(table: dict[str, Any]) -> None:
        table["exact"]["w"]["blocks"][0]["form"]["settings"]["factor"] = factor

    damage_whole_table(path, change)
    assert "block 0: the form residual does not accept" in message(
        DecodeError, lambda: open_artifact(path).packed_exact("w")
    )
    assert "does not accept" in message(ArtifactError, lambda: verify(path, None, lambda name: None))


def test_what_it_cannot_store_exactly_is_refused(tmp_path: Path) -> None:
    base, longer = {"w": weights(torch.float32)}, {"w": weights(torch.float32, shape=(30, 130))}
    rows = memory_pair(base, longer, on_resize="rows")
    assert "--on-resize extra" in message(UsageError, lambda: lossless(rows, job()))
    whole = memory_pair(base, longer, on_resize="extra")
    artifact = compressed(whole, tmp_path / "t.fsw", "lossless")
    assert_same_state({"w": restore(whole.base, artifact)["w"]}, longer)
    vector = extracted(memory_pair(base, base), tmp_path / "t.tv.safetensors")
    assert "give the fine-tuned checkpoint" in message(UsageError, lambda: lossless(vector, job()))
