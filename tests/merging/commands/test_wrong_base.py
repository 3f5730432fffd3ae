"""A base that differs in one entry is refused by everything that takes a base; the right one never is."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import laws
from support.checkpoints import message
from support.evaluations import copy_of, index
from support.tiny_models import Toy, contents, texts, write_jsonl

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.evaluate import evaluate
from flexswitch.merging.commands.export import export
from flexswitch.merging.commands.extract import extract
from flexswitch.merging.commands.index import index as index_command
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.route import route
from flexswitch.merging.commands.verify import verify
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.add_task import add_task
from flexswitch.merging.task_vectors.restore import restore

PLACES = 60 if laws.DEEP else 6


@pytest.fixture(scope="module")
def toy(text: Toy, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A copy of the toy, indexed, with `birds.tv.safetensors` and `samples.jsonl` in its folder of data."""
    toy = copy_of(text, tmp_path_factory.mktemp("toy"))
    index(toy)
    extract(toy.base, toy.finetuned["birds"], toy.data / "birds.tv.safetensors")
    write_jsonl(toy.data / "samples.jsonl", texts("birds", 3, seed=0), None)
    return toy


@contextmanager
def changed_entry(base: Path, draw: np.random.Generator) -> Iterator[None]:
    """Changes one random bit of one random weight in a model's file."""
    file = base / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    place, bit = int(draw.integers(start, len(data))), int(draw.integers(8))
    data[place] ^= 1 << bit
    file.write_bytes(data)
    try:
        yield
    finally:
        data[place] ^= 1 << bit
        file.write_bytes(data)


Way = Callable[[Toy, Path, Path], object]  # of the zoo, the base, and a folder for outputs

WAYS: dict[str, Way] = {
    "merge --task": lambda toy, base, out: merge([toy.zoo], out / "m", base=base, task="birds"),
    "merge --method": lambda toy, base, out: merge([toy.zoo], out / "m", base=base, method="average"),
    "merge of a task vector": lambda toy, base, out: merge(
        [toy.data / "birds.tv.safetensors"], out / "m", base=base, task="birds"
    ),
    "index": lambda toy, base, out: index_command(toy.zoo, base=base, exemplars=toy.data, overwrite=True),
    "route": lambda toy, base, out: route(toy.zoo, base=base, samples=toy.data / "samples.jsonl"),
    "eval": lambda toy, base, out: evaluate(toy.zoo, base=base, data=toy.data),
    "compress --base of a task vector": lambda toy, base, out: compress(
        toy.data / "birds.tv.safetensors", out / "birds.fsw", base=base, target_size="5KB", exemplars=toy.data
    ),
    "export": lambda toy, base, out: export([toy.zoo], out / "l", base=base, task="birds", to="lora", rank=1),
    "restore": lambda toy, base, out: restore(base, open_zoo(toy.zoo)["birds"]),
    "verify --base": lambda toy, base, out: verify(toy.zoo, base=base),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_changed_entry_anywhere_is_refused_and_nothing_is_written(
    toy: Toy, tmp_path: Path, way: str
) -> None:
    base = shutil.copytree(toy.base, tmp_path / "base")
    out, before = tmp_path / "out", contents(toy.zoo)
    out.mkdir()
    draw = np.random.default_rng(0)
    for _ in range(PLACES):
        with changed_entry(base, draw):
            found = message(InputError, lambda: WAYS[way](toy, base, out))
        assert found.startswith(f"{base}: is not the base of {toy.zoo.parent}/")
        assert list(out.iterdir()) == []
    assert contents(toy.zoo) == before


@pytest.mark.parametrize(
    "way", ["merge --task", "merge --method", "export", "restore", "verify --base", "index"]
)
@pytest.mark.parametrize(
    "change", ["a tensor is missing", "a tensor has another shape", "all names have a prefix"]
)
def test_a_base_of_another_form_is_a_wrong_base_and_no_damage(
    toy: Toy, tmp_path: Path, way: str, change: str
) -> None:
    base = shutil.copytree(toy.base, tmp_path / "base")
    state, name = load_file(base / "model.safetensors"), "encoder.layer.0.intermediate.dense.weight"
    if change == "a tensor is missing":
        del state[name]
    elif change == "a tensor has another shape":
        state[name] = state[name].T.contiguous()
    else:
        state = {f"bert.{each}": tensor for each, tensor in state.items()}
    save_file(state, base / "model.safetensors")
    found = message(InputError, lambda: WAYS[way](toy, base, tmp_path))
    assert found.startswith(f"{base}: is not the base of ")


def loaded(toy: Toy, **options: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(toy.base, num_labels=2, **options).eval()


def flip(tensor: torch.Tensor, draw: np.random.Generator) -> None:
    data = tensor.detach().view(-1).view(torch.uint8)
    data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))


@pytest.mark.parametrize(
    "way", ["SwitchedModel", "SwitchedModel with base=", "add_task", "add_task with base="]
)
def test_one_changed_entry_of_a_model_in_memory_is_refused(toy: Toy, way: str) -> None:
    module, zoo, draw = loaded(toy), open_zoo(toy.zoo), np.random.default_rng(1)
    base = toy.base if "base=" in way else None
    state = {f"bert.{name}": tensor for name, tensor in module.bert.state_dict().items()}
    stored = load_file(toy.base / "model.safetensors")
    names = sorted(name for name in stored if stored[name].is_floating_point())
    own = module.state_dict()
    state = {name: own["bert." + name] for name in stored}
    sizes = np.array([stored[name].numel() for name in names])
    for _ in range(PLACES):
        tensor = state[names[draw.choice(len(names), p=sizes / sizes.sum())]]
        before = tensor.clone()
        flip(tensor, draw)
        if "SwitchedModel" in way:
            found = message(InputError, lambda: SwitchedModel(module, zoo, base=base))
        else:
            found = message(InputError, lambda: add_task(state, zoo["birds"], base=base))
        assert found.startswith(f"the model does not hold the base of {toy.zoo}/tasks/birds")
        tensor.copy_(before)
    if "SwitchedModel" in way:
        SwitchedModel(module, zoo, base=base)
    else:
        add_task(state, zoo["birds"], base=base)
        again = message(InputError, lambda: add_task(state, zoo["cities"], base=base))
        assert again.startswith("the model does not hold the base of")
        add_task(state, zoo["cities"], check_base=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_base_in_another_dtype_passes_and_one_changed_entry_of_it_does_not(
    toy: Toy, dtype: torch.dtype
) -> None:
    module, zoo = loaded(toy, dtype=dtype), open_zoo(toy.zoo)
    SwitchedModel(module, zoo)
    flip(module.bert.encoder.layer[1].output.dense.weight, np.random.default_rng(2))
    assert "tensor 'encoder.layer.1.output.dense.weight' differs" in message(
        InputError, lambda: SwitchedModel(module, zoo)
    )
    SwitchedModel(module, zoo, check_base=False)


def test_a_model_of_which_nobody_knows_where_it_came_from(toy: Toy) -> None:
    zoo, module = open_zoo(toy.zoo), loaded(toy)
    module.config.name_or_path = ""
    SwitchedModel(module, zoo)  # its weights beside the tasks' head are exactly the base's
    del module.bert.pooler
    found = message(InputError, lambda: SwitchedModel(module, zoo))
    assert found.startswith("the module has no parameter 'pooler.dense.bias'") or found.endswith(
        "if it holds another dtype or only some tensors, give base= to compare with"
    )


def test_tasks_of_two_bases_are_refused_together(toy: Toy, tmp_path: Path) -> None:
    state = load_file(toy.base / "model.safetensors")
    other = shutil.copytree(toy.base, tmp_path / "other")
    state["embeddings.LayerNorm.bias"][0] += 1
    save_file(state, other / "model.safetensors")
    artifact = compress(toy.finetuned["birds"], tmp_path / "birds.fsw", base=other)
    zoo = {"cities": open_zoo(toy.zoo)["cities"], "birds": artifact}
    found = message(InputError, lambda: SwitchedModel(loaded(toy), zoo))
    assert found.endswith("all tasks must share one base")


# --- the right base in all its forms ----------------------------------------------------------------------


def sharded(base: Path, folder: Path) -> None:
    from transformers import AutoModel

    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    AutoModel.from_pretrained(base).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1


def as_bin(base: Path, folder: Path) -> None:
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    torch.save(load_file(base / "model.safetensors"), folder / "pytorch_model.bin")


def hub_cache(base: Path, folder: Path) -> None:
    """Links as the hub's cache makes them."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    folder.mkdir()
    for number, file in enumerate(sorted(base.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (folder / file.name).symlink_to(f"../blobs/{number}")


@pytest.mark.parametrize("form", [sharded, as_bin, hub_cache])
def test_every_form_of_the_right_base_is_taken(
    toy: Toy, tmp_path: Path, form: Callable[[Path, Path], None]
) -> None:
    base = tmp_path / "form"
    form(toy.base, base)
    plain = {"base": toy.base, "task": "birds"}
    merge([toy.zoo], tmp_path / "expected", **plain)  # type: ignore[arg-type]
    for _ in range(2):  # hashed, and then remembered
        merge([toy.zoo], tmp_path / "found", base=base, task="birds", overwrite=True)
        found, expected = (load_file(tmp_path / each / "model.safetensors") for each in ("found", "expected"))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "is the base" in str(verify(toy.zoo, base=base))
    SwitchedModel(loaded(toy), open_zoo(toy.zoo), base=base)
    route(toy.zoo, base=base, samples=toy.data / "samples.jsonl")
