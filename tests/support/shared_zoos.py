"""Zoos of small models that share one vector, and what their tasks are restored to."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.checkpoints import State
from support.merge_case import Weights
from support.static_merges import NAMES
from support.tiny_models import save_state

from flexswitch.codecs.format.zoo import Zoo, open_zoo
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.task_vectors.shared_vector import artifact_vector
from flexswitch.merging.task_vectors.task_vector import delta_tensor

SHAPES = {
    "layers.0.w": (17, 23),
    "layers.1.w": (6, 1),
    "layers.2.w": (40, 12),
    "norm": (11,),
    "one": (1,),
    "rows.w": (3, 2, 4),
    "zero": (4, 3),
}


def states(tasks: int, kind: str = "normal") -> tuple[State, list[State]]:
    """Returns a base and fine-tuned states; kind "ties": of few values, so that many magnitudes are equal."""
    generator = torch.Generator().manual_seed(tasks)

    def draw(size: float) -> State:
        return {name: size * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    base = {name: (8 * tensor).round() / 8 for name, tensor in draw(1.0).items()}
    found = []
    for _ in range(tasks):
        deltas = draw(0.1)
        if kind == "ties":  # multiples of a power of two, which float32 adds exactly
            deltas = {name: (40 * delta).round() / 32 for name, delta in deltas.items()}
        deltas["zero"] = torch.zeros(SHAPES["zero"])
        found.append({name: base[name] + delta for name, delta in deltas.items()})
    return base, found


def save_states(folder: Path, base: State, tasks: list[State]) -> tuple[Path, list[str]]:
    """Writes the states, each task with a head of its own; returns the base's path and TASK=PATH sources."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = save_state(folder / "base.safetensors", base)
    sources = []
    for number, (name, state) in enumerate(zip(NAMES, tasks, strict=False)):
        own = {"own.weight": torch.full((2, 6), float(number))}
        sources.append(f"{name}={save_state(folder / f'{name}.safetensors', state | own)}")
    return saved, sources


def shared_zoo(folder: Path, method: str, tasks: int = 3, kind: str = "normal", **options: Any) -> Zoo:
    """Returns a new zoo of tasks that share a vector."""
    base, sources = save_states(folder / "models", *states(tasks, kind))
    return pack(sources, folder / "zoo", share=method, base=base, **options)


def restored_deltas(zoo: Path) -> dict[str, Weights]:
    """Returns task → tensor → delta of a zoo."""
    opened = open_zoo(zoo)
    vectors = {task: artifact_vector(opened[task]) for task in opened}
    return {
        task: {name: delta_tensor(vector, name).numpy().astype(np.float64) for name in vector.tensors}
        for task, vector in vectors.items()
    }
