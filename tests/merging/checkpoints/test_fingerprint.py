"""A base is identified by its fingerprint, however it is stored."""

from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file
from support.checkpoints import MemoryCheckpoint, State, message, save_model

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.merging.checkpoints.fingerprint import check_base, fingerprint, identify
from flexswitch.merging.checkpoints.opening import open_checkpoint

STATE: State = {
    "b.weight": torch.arange(5000.0).reshape(50, 100),
    "a.bias": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
    "c.counter": torch.tensor(3),
    "d.flags": torch.tensor([True, False, True]),
    "e.empty": torch.empty(0, 2),
}
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}


def expected_fingerprint(state: State) -> str:
    lines = []
    for name, tensor in sorted(state.items()):
        content = blake3(bytes(tensor.reshape(-1).view(torch.uint8).tolist())).hexdigest()
        shape = ",".join(str(size) for size in tensor.shape)
        lines.append(f"{name}\0{NAMES[tensor.dtype]}\0{shape}\0{content}\n")
    return blake3("".join(lines).encode()).hexdigest()


def changed(name: str, entry: int) -> MemoryCheckpoint:
    tensor = STATE[name].clone()
    tensor.view(-1).view(torch.uint8)[entry * tensor.element_size()] ^= 1
    return MemoryCheckpoint(STATE | {name: tensor})


def test_the_fingerprint_is_a_hash_over_names_dtypes_shapes_and_contents() -> None:
    found = identify(MemoryCheckpoint(STATE))
    assert found.fingerprint == expected_fingerprint(STATE)
    # Stored in every artifact of this base, so it must never change.
    assert found == BaseIdentity(
        fingerprint="7a0ce9883a2d23ac0859b8f0f942e637c9b0c0b6ce7a23a1910d5a9b8820a7df", id=None
    )


def test_files_shards_and_order_of_tensors_do_not_matter(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "state.safetensors")
    torch.save(dict(reversed(STATE.items())), tmp_path / "state.pt")
    sources = [tmp_path / "state.safetensors", tmp_path / "state.pt"]
    for kind in ("safetensors", "bin"):
        for shards in (1, 2, 4):
            sources.append(save_model(tmp_path / f"{kind}-{shards}", STATE, {"a": shards}, kind, shards))
    found = {identify(open_checkpoint(str(source))) for source in sources}
    assert found == {identify(MemoryCheckpoint(STATE))}


def test_a_tensor_that_is_read_in_several_parts_has_the_hash_of_its_bytes() -> None:
    state = {"w": torch.arange((1 << 19) + 5) % 7 == 0}
    assert fingerprint(MemoryCheckpoint(state)) == expected_fingerprint(state)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("a.bias", 1),
        ("b.weight", 0),
        ("b.weight", 64),
        ("b.weight", 2040),
        ("b.weight", 4999),
        ("c.counter", 0),
    ],
)
def test_any_flipped_bit_changes_it(name: str, entry: int) -> None:
    assert fingerprint(changed(name, entry)) != fingerprint(MemoryCheckpoint(STATE))


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
    assert fingerprint(MemoryCheckpoint(other)) != fingerprint(MemoryCheckpoint({"w": torch.zeros(4)}))


def test_the_identity_names_the_hub_id() -> None:
    base = MemoryCheckpoint(STATE)
    base.hub_id = "org/base@v1"
    assert identify(base).id == "org/base@v1"


def test_the_base_itself_passes() -> None:
    base = MemoryCheckpoint(STATE)
    check_base(base, identify(base), "task.fsw")


@pytest.mark.parametrize(("hub_id", "advice"), [(None, ""), ("org/base@v1", ", --base org/base@v1")])
def test_another_base_is_refused_with_both_fingerprints(hub_id: str | None, advice: str) -> None:
    other = changed("b.weight", 100)
    expected = identify(MemoryCheckpoint(STATE)).model_copy(update={"id": hub_id})
    assert message(InputError, lambda: check_base(other, expected, "task.fsw")) == (
        f"memory: is not the base of task.fsw: its fingerprint is {fingerprint(other)[:12]}, "
        f"expected {expected.fingerprint[:12]}; give the base it was made from{advice}"
    )
