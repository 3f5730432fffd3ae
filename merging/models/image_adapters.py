"""The adapter of image classifiers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.config import read_json_object
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.huggingface import HuggingFace
from flexswitch.merging.models.outputs import OutputKind

_FIXED_QUERIES = ("detr", "table-transformer", "yolos")


class Images(HuggingFace):
    """Makes batches of pixel arrays.

    Floating-point arrays are used as pixel_values without changes; uint8 arrays are rescaled and normalised
    according to the base's preprocessor_config.json.
    """

    neighbours = 10
    kind: OutputKind | None = None

    def batch(self, inputs: Inputs) -> Batch:
        """Returns pixel_values, (sample, channel, height, width) float32."""
        pixels = np.asarray(inputs)
        if pixels.ndim != 4:
            raise InputError(
                f"images have the shape {pixels.shape}, expected (sample, channel, height, width)"
            )
        if pixels.dtype == np.uint8:
            return {"pixel_values": self._normalised(torch.from_numpy(pixels).float())}
        return {"pixel_values": torch.from_numpy(pixels.astype(np.float32))}

    def _normalised(self, pixels: Tensor) -> Tensor:
        path = self.directory / "preprocessor_config.json"
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; uint8 images are normalised by it; add it, or give float images"
            )
        settings = read_json_object(path)
        if settings.get("do_rescale", True):
            factor = settings.get("rescale_factor", 1 / 255)
            if not _is_number(factor):
                raise InputError(f"{path}: has the rescale_factor {factor!r}, expected a number")
            pixels = pixels * factor
        if not settings.get("do_normalize", True):
            return pixels
        moments = [settings.get(key) for key in ("image_mean", "image_std")]
        for each in moments:
            if not (isinstance(each, list) and len(each) == pixels.shape[1] and all(map(_is_number, each))):
                raise InputError(
                    f"{path}: has the image_mean {moments[0]} and image_std {moments[1]}, "
                    f"expected one number for each of {pixels.shape[1]} channels"
                )
        mean, deviation = (torch.tensor(each).view(1, -1, 1, 1) for each in moments)
        return (pixels - mean) / deviation


class ImageClassification(Images):
    """`hf-image-classification`: AutoModelForImageClassification on pixel arrays."""

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the classifier with the number of labels in the config."""
        return self.untrained("AutoModelForImageClassification", config, extras)


class ObjectDetection(Images):
    """`hf-object-detection`: AutoModelForObjectDetection on pixel arrays, such as DETR and YOLOS."""

    kind: OutputKind | None = "boxes"

    def answers(self, logits: Tensor, batch: Batch, inputs: Inputs) -> list[Any]:
        """Returns for each image an array (query, 5): a class, -1 for no object, and its box.

        Raises: InputError for models whose queries find other objects each time, or all have one.
        """
        if self.config["model_type"] not in _FIXED_QUERIES:
            raise InputError(
                f"{self.base.source}: eval compares objects query by query, in {', '.join(_FIXED_QUERIES)} "
                "models; restore others and measure them yourself: flexswitch merge ZOO --base "
                f"{self.base.source} -o OUT --task NAME"
            )
        classes = logits[..., :-4].argmax(-1)  # (sample, query)
        classes[classes == logits.shape[-1] - 5] = -1  # the last class is that of no object
        return list(torch.cat([classes[..., None], logits[..., -4:].float()], -1).cpu().numpy())

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the detector with the number of labels in the config."""
        return self.untrained("AutoModelForObjectDetection", config, extras)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        found = model(**batch)
        return torch.cat([found.logits, found.pred_boxes], -1)  # (sample, query, class + 4)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
