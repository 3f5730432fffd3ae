"""Checks of features and search on a device."""

from pathlib import Path

import numpy as np
import torch
from setting import Figures, MismatchError, Setting, close, same

from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.examples import Examples
from flexswitch.merging.routing.features import ModelFeatures
from flexswitch.merging.routing.neighbour_search import NeighbourSearch

SPECS = ("layer:0", "layers:1+2", "pooled")


def features(setting: Setting) -> Figures:
    """Compares features of pictures with the CPU's: an exemplar's bit for bit, others within rounding."""
    folder = _vision_model(setting.work / "vision")
    adapter = get_adapter(open_checkpoint(str(folder)), "hf-image-classification")
    pixels = np.random.default_rng(0).standard_normal((40, 3, 8, 8), np.float32)
    examples, rows = Examples(pixels, None), np.arange(len(pixels))
    for spec in SPECS:
        expected, found = (
            ModelFeatures(spec, adapter, adapter.encoder().to(device), device)
            for device in ("cpu", setting.device)
        )
        same(spec, found.exemplars("task", examples, rows), expected.exemplars("task", examples, rows))
        wanted = expected.rows("task", "test", examples, rows)
        yield f"{spec}, difference", close(spec, found.rows("task", "test", examples, rows), wanted, 2e-3)
        half = ModelFeatures(spec, adapter, found.encoder, setting.device, "bfloat16")
        given = half.rows("task", "test", examples, rows)
        yield f"{spec}, bfloat16, difference", close(f"{spec}, bfloat16", given, wanted, 5e-2)


def search(setting: Setting) -> Figures:
    """Compares nearest neighbours by FAISS, where it supports the device, and by torch with the CPU's."""
    import faiss

    yield "FAISS has GPU indexes", hasattr(faiss, "StandardGpuResources")
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((setting.of(50_000, 2_000), 384), np.float32)
    vectors[7] = vectors[3]  # equal distances, of which the lower position comes first
    queries = vectors[:64] + 0.5 * generator.standard_normal((64, 384), np.float32)
    expected = NeighbourSearch(vectors, approximate_from=len(vectors) + 1).search(queries, 10)
    for name, library in (("the library chosen", None), ("torch", "torch")):
        index = NeighbourSearch(vectors, setting.device, library)
        found = index.search(queries, 10)
        if not np.array_equal(found.positions, expected.positions):
            wrong = int((found.positions != expected.positions).any(1).sum())
            raise MismatchError(
                f"{name}: other neighbours than the CPU's for {wrong} of {len(queries)} queries"
            )
        if not np.array_equal(found.distances, expected.distances):
            raise MismatchError(f"{name}: the distances are not the CPU's")
        yield (
            f"{name}, ms for 64 queries",
            1e3 * setting.seconds(lambda index=index: index.search(queries, 10)),
        )


def _vision_model(folder: Path) -> Path:
    """Returns the folder of an untrained ViT of two layers, which is written where it is missing."""
    from transformers import ViTConfig, ViTModel

    if not folder.exists():
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=8,
            patch_size=4, initializer_range=0.2,
        )  # fmt: skip
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder
