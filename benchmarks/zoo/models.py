"""Makes the checkpoints, the exemplars and the recipe of the benchmark of zoos."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import ViTConfig, ViTModel

RECIPE = """
version: 1
defaults: {base: base}
steps:
  - name: compress {task}
    command: compress
    foreach: {table: zoo.csv}
    inputs: ["models/{task}.safetensors"]
    options: {output: "artifacts/{task}.fsw", set: {drop: 0.6}}
  - {name: pack, command: pack, inputs: ["artifacts/*.fsw"], options: {output: zoo}}
  - {name: verify, command: verify, inputs: [zoo]}
"""
EXEMPLARS = 10  # pictures of each task


def write_models(work: Path, tasks: int) -> None:
    """Writes a small vision transformer of 2.1 MB, its fine-tunes, pictures of each task, and the recipe."""
    for folder in ("models", "data"):
        (work / folder).mkdir(parents=True)
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=128, intermediate_size=256,
        num_hidden_layers=4, num_attention_heads=4,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(work / "base")
    base = load_file(work / "base" / "model.safetensors")
    generator = np.random.default_rng(0)
    for number in range(tasks):
        tuned = {name: _moved(weights, generator) for name, weights in base.items()}
        save_file(tuned, work / "models" / f"t{number}.safetensors")
        pictures = generator.normal(loc=generator.normal(size=(1, 8, 8)), size=(EXEMPLARS, 1, 8, 8))
        np.savez(work / "data" / f"t{number}.train.npz", x=pictures.astype(np.float32))
    write_recipe(work, [f"t{number}" for number in range(tasks)])


def write_recipe(folder: Path, tasks: list[str]) -> None:
    """Writes the recipe and its table of tasks."""
    (folder / "zoo.csv").write_text("\n".join(["task", *tasks, ""]))
    (folder / "zoo.yaml").write_text(RECIPE)


def _moved(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return weights + 0.01 * generator.normal(size=weights.shape).astype(weights.dtype)
