"""Files of torch.save that stand for more than they hold, or hold what a state dict never does."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import message

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.opening import open_checkpoint

COMPRESSED = "its parts are compressed or overlap, expected them as torch.save stores them"
DEEP = "its dicts are nested more than 16 levels deep"
PLAIN = "expected a plain tensor with its values"


def views(count: int, size: int) -> dict[str, torch.Tensor]:
    """Returns as many tensors, each the values of one storage from another place on."""
    storage = torch.ones(size + count)
    return {f"w{number}": storage[number : number + size] for number in range(count)}


def nested(levels: int, key: Any = "a") -> dict[Any, Any]:
    found: dict[Any, Any] = {"w": torch.ones(2), "v": torch.ones(2)}
    for _ in range(levels):
        found = {key: found}
    return found


def holding_itself() -> dict[str, Any]:
    found: dict[str, Any] = {"step": 1}
    found["self"] = found
    return found


def nested_key() -> tuple[Any, ...]:
    key: tuple[Any, ...] = ()
    for _ in range(500):
        key = (key,)
    return key


def refused(path: Path, state: object) -> str:
    torch.save(state, path)
    return message(InputError, lambda: open_checkpoint(str(path))).removeprefix(f"{path}: ")


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "one value for 4 TB": (lambda: {"w": torch.zeros(1).as_strided((10**6, 10**6), (0, 0))}, "its tensors have 4,000,000,000,000 bytes in a file of "),
    "one row for all rows": (lambda: {"w": torch.zeros(64).expand(10**8, 64)}, "its tensors have 25,600,000,000 bytes in a file of "),
    "windows of few values": (lambda: {"w": torch.zeros(10**4).as_strided((5000, 5000), (1, 1))}, "its tensors have 100,000,000 bytes in a file of "),
    "many views of the same values": (lambda: views(100, 10**5), "its tensors have 40,000,000 bytes in a file of "),
    "no values": (lambda: {"w": torch.empty(10**9, device="meta")}, f"tensor 'w' is without values, {PLAIN}"),
    "a nested tensor": (lambda: {"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, f"tensor 'w' is nested, {PLAIN}"),
    "a sparse tensor": (lambda: {"w": torch.eye(4).to_sparse_csr()}, "tensor 'w' has the dtype torch.float32 and the layout torch.sparse_csr, which is not handled"),
    "a quantised tensor": (lambda: {"w": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}, "tensor 'w' has the dtype torch.qint8"),
    "a dict of itself": (holding_itself, "not a state dict: 'step' holds a int"),
    "dicts in dicts": (lambda: nested(200), DEEP),
    "half a character": (lambda: {"a\ud800": torch.ones(2)}, "the name of the tensor 'a\ud800' is not Unicode text"),
    "tuples in tuples": (lambda: {nested_key(): torch.ones(2)}, "not a state dict: has a key that is a tuple"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch warns of some kinds of tensors
@pytest.mark.parametrize("situation", REFUSED)
def test_what_no_state_dict_holds_is_refused_in_one_line(tmp_path: Path, situation: str) -> None:
    make, reason = REFUSED[situation]
    assert refused(tmp_path / "state.pt", make()).startswith(reason)


def test_a_zip_file_with_compressed_parts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    assert message(InputError, lambda: open_checkpoint(str(path))).startswith(f"{path}: {COMPRESSED}")


def test_a_zip_file_whose_parts_say_they_are_larger_than_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"w": torch.ones(2)}, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        sizes = archive.start_dir + 20  # of the first part in the table of parts, packed and unpacked
    path.write_bytes(data[:sizes] + b"\xff\xff\xff\x7f" * 2 + data[sizes + 8 :])
    assert message(InputError, lambda: open_checkpoint(str(path))).startswith(f"{path}: {COMPRESSED}")


TAKEN: dict[str, dict[str, torch.Tensor]] = {
    "transposed": {"w": torch.arange(600.0).view(20, 30).t()},
    "channels last": {"w": torch.arange(48.0).view(2, 3, 2, 4).to(memory_format=torch.channels_last)},
    "parts of one tensor": dict(zip("abc", torch.arange(600.0).view(30, 20).chunk(3), strict=True)),
    "tied and transposed": (lambda w: {"a": w, "b": w, "c": w.t()})(torch.arange(600.0).view(20, 30)),
    "one scalar for a small buffer": {"w": torch.arange(600.0), "b": torch.ones(1).expand(50)},
    "a parameter": {"w": torch.nn.Parameter(torch.ones(3))},
    "no entries": {"w": torch.ones(0, 4), "v": torch.ones(3)},
}


@pytest.mark.parametrize("situation", TAKEN)
def test_views_that_models_have_are_read(tmp_path: Path, situation: str) -> None:
    state = TAKEN[situation]
    torch.save(state, tmp_path / "state.pt")
    found = open_checkpoint(str(tmp_path / "state.pt"))
    for name, tensor in state.items():
        held = found.read(found.aliases.get(name, name))
        assert torch.equal(held, tensor.detach().reshape(-1))
