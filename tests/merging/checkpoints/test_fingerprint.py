"""A base is identified by its fingerprint, however it is stored."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import MemoryCheckpoint, State, message, save_model

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.merging.checkpoints.fingerprint import check_base, fingerprint, identify, quick_fingerprint
from flexswitch.merging.checkpoints.opening import open_checkpoint

STATE: State = {
    "b.weight": torch.arange(5000.0).reshape(50, 100),
    "a.bias": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
    "c.counter": torch.tensor(3),
    "d.flags": torch.tensor([True, False, True]),
    "e.empty": torch.empty(0, 2),
}


def expected_fingerprint(state: State) -> str:
    lines = []
    for name, tensor in sorted(state.items()):
        dtype = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
        content = hashlib.sha256(bytes(tensor.reshape(-1).view(torch.uint8).tolist())).hexdigest()
        shape = ",".join(str(size) for size in tensor.shape)
        lines.append(f"{name}\0{dtype[tensor.dtype]}\0{shape}\0{content}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def changed(name: str, entry: int) -> MemoryCheckpoint:
    tensor = STATE[name].clone()
    tensor.view(-1).view(torch.uint8)[entry * tensor.element_size()] ^= 1
    return MemoryCheckpoint(STATE | {name: tensor})


def test_the_fingerprint_is_a_hash_over_names_dtypes_shapes_and_contents() -> None:
    found = identify(MemoryCheckpoint(STATE))
    assert found.fingerprint == expected_fingerprint(STATE)
    # Stored in every artifact of this base, so it must never change.
    assert found == BaseIdentity(
        fingerprint="fb552f28168b85b2396072a16345e10ff8b56a9ac78e29c57ce6410ab72ecb94",
        quick_fingerprint="6afe113e8592e9c2ead939a0e45ae96b9b52f064e33467971fa7cc2a6a5a0b84",
        id=None,
    )


def test_the_quick_fingerprint_of_a_small_base_is_the_full_one() -> None:
    small = {name: tensor for name, tensor in STATE.items() if name != "b.weight"}
    assert quick_fingerprint(MemoryCheckpoint(small)) == expected_fingerprint(small)
    edge = {"w": torch.arange(1024.0)}
    assert quick_fingerprint(MemoryCheckpoint(edge)) == expected_fingerprint(edge)


def test_the_quick_fingerprint_covers_the_first_and_the_last_entry_of_16_even_slices() -> None:
    slices = torch.cat([STATE["b.weight"].view(-1)[n * 4936 // 15 :][:64] for n in range(16)])
    found = quick_fingerprint(MemoryCheckpoint({"w": STATE["b.weight"]}))
    content = hashlib.sha256(slices.numpy().tobytes()).hexdigest()
    assert found == hashlib.sha256(f"w\0F32\x0050,100\0{content}\n".encode()).hexdigest()


def test_files_shards_and_order_of_tensors_do_not_matter(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "state.safetensors")
    torch.save(dict(reversed(STATE.items())), tmp_path / "state.pt")
    sources = [tmp_path / "state.safetensors", tmp_path / "state.pt"]
    for kind in ("safetensors", "bin"):
        for shards in (1, 2, 4):
            sources.append(save_model(tmp_path / f"{kind}-{shards}", STATE, {"a": shards}, kind, shards))
    found = {identify(open_checkpoint(str(source))) for source in sources}
    assert found == {identify(MemoryCheckpoint(STATE))}


def test_a_tied_tensor_counts_once_whether_its_second_name_is_saved_or_not(tmp_path: Path) -> None:
    shared = torch.ones(2, 2)
    save_model(tmp_path / "bin", {"embed": shared, "head": shared}, kind="bin")
    save_model(tmp_path / "safetensors", {"embed": shared})
    one, two = (identify(open_checkpoint(str(tmp_path / kind))) for kind in ("bin", "safetensors"))
    assert one == two


def test_a_tensor_that_is_read_in_several_parts_has_the_hash_of_its_bytes() -> None:
    state = {"w": torch.arange((1 << 22) + 5) % 7 == 0}
    assert fingerprint(MemoryCheckpoint(state)) == expected_fingerprint(state)


@pytest.mark.parametrize(
    ("name", "entry"),
    [("a.bias", 1), ("b.weight", 0), ("b.weight", 63), ("b.weight", 4999), ("c.counter", 0)],
)
def test_a_flipped_bit_in_a_slice_changes_both(name: str, entry: int) -> None:
    found, same = identify(changed(name, entry)), identify(MemoryCheckpoint(STATE))
    assert found.fingerprint != same.fingerprint
    assert found.quick_fingerprint != same.quick_fingerprint


@pytest.mark.parametrize("entry", [64, 300, 2040, 4935])
def test_a_flipped_bit_between_the_slices_changes_only_the_full_one(entry: int) -> None:
    found, same = identify(changed("b.weight", entry)), identify(MemoryCheckpoint(STATE))
    assert found.fingerprint != same.fingerprint
    assert found.quick_fingerprint == same.quick_fingerprint


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.zeros(4, 1)},
        {"w": torch.zeros(4, dtype=torch.int32)},
        {"v": torch.zeros(4)},
        {"w": torch.zeros(4), "v": torch.empty(0)},
        {"w": torch.tensor([0.0, 0.0, 0.0, -0.0])},
    ],
)
def test_another_shape_dtype_name_or_sign_of_zero_is_another_base(other: State) -> None:
    found, same = identify(MemoryCheckpoint(other)), identify(MemoryCheckpoint({"w": torch.zeros(4)}))
    assert found.fingerprint != same.fingerprint
    assert found.quick_fingerprint != same.quick_fingerprint


def test_the_identity_names_the_hub_id() -> None:
    base = MemoryCheckpoint(STATE)
    base.hub_id = "org/base@v1"
    assert identify(base).id == "org/base@v1"


def test_the_base_itself_passes_both_checks() -> None:
    base = MemoryCheckpoint(STATE)
    check_base(base, identify(base), "task.fsw")
    check_base(base, identify(base), "task.fsw", full=True)


def test_another_base_is_refused_by_its_slices() -> None:
    other, expected = changed("a.bias", 0), identify(MemoryCheckpoint(STATE))
    assert message(InputError, lambda: check_base(other, expected, "task.fsw")) == (
        f"memory: is not the base of task.fsw: its quick fingerprint is {quick_fingerprint(other)[:12]}, "
        f"expected {expected.quick_fingerprint[:12]}; give the base it was made from"
    )


def test_only_the_full_check_finds_a_difference_between_the_slices() -> None:
    other = changed("b.weight", 100)
    expected = identify(MemoryCheckpoint(STATE)).model_copy(update={"id": "org/base"})
    check_base(other, expected, "task.fsw")
    assert message(ArtifactError, lambda: check_base(other, expected, "task.fsw", full=True)) == (
        f"memory: is not the base of task.fsw: its fingerprint is {fingerprint(other)[:12]}, "
        f"expected {expected.fingerprint[:12]} (org/base); give the base it was made from"
    )
