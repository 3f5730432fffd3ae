"""The adapter of CLIP's vision encoders, whose tasks have heads made of texts, or of files."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.architecture import HEAD_BIAS, HEAD_WEIGHT
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.models.examples import Batch
from flexswitch.merging.models.image_adapters import Images
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.models.outputs import OutputKind

_VISION, _PROJECTION = "vision_model.", "visual_projection.weight"


class ClipVision(Images):
    """`hf-clip-vision`: CLIP's vision encoder and projection on pixel arrays.

    Its outputs are the projected images, of length 1, or what a linear head makes of them.
    """

    kind: OutputKind | None = "features"

    def __init__(self, base: Checkpoint) -> None:
        super().__init__(base)
        self._whole = self.config
        vision = self.config.get("vision_config")
        if self.config["model_type"] == "clip" and isinstance(vision, Mapping):
            width = self.config.get("projection_dim", vision.get("projection_dim"))
            self.config = {**vision, "model_type": "clip_vision_model", "projection_dim": width}

    def encoder(self) -> nn.Module:
        """Returns the vision encoder, with its weights loaded."""
        module = self.untrained("AutoModel", {})
        state = {
            name.removeprefix(_VISION): self.base.read(name).view(info.shape)
            for name, info in self.base.tensors.items()
            if _is_vision(name)
        }
        load_weights(module, state, self.base.source)
        return module

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the encoder with its projection, if the base has one, and a head of the stored shape.

        Raises: InputError where the head does not fit.
        """
        encoder: Any = self.untrained("AutoModel", {})
        parts: dict[str, nn.Module] = {"encoder": encoder}
        width = encoder.config.hidden_size
        if _PROJECTION in self.base.tensors:
            projected = self.base.tensors[_PROJECTION].shape[0]
            parts["visual_projection"] = nn.Linear(width, projected, bias=False)
            width = projected
        if HEAD_WEIGHT in extras:
            shape = extras[HEAD_WEIGHT].shape
            if len(shape) != 2 or shape[1] != width:
                raise InputError(
                    f"{self.base.source}: gives images of width {width}, and the head's weight has the shape "
                    f"{list(shape)}, expected [classes, {width}]"
                )
            parts["head"] = nn.Linear(width, shape[0], bias=HEAD_BIAS in extras)
        return nn.ModuleDict(parts).eval()

    def parameter_name(self, finetuned_name: str) -> str:
        """Returns the name in the module that holds encoder, projection and head."""
        if finetuned_name in (HEAD_WEIGHT, HEAD_BIAS, _PROJECTION):
            return finetuned_name
        return f"encoder.{finetuned_name.removeprefix(_VISION)}"

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        parts = dict(model.named_children())
        images = parts["encoder"](**batch).pooler_output
        if "visual_projection" in parts:
            images = parts["visual_projection"](images)
        images = functional.normalize(images, dim=-1)
        return parts["head"](images) if "head" in parts else images

    def head_of_texts(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """Returns the weight (class, width) of the head that compares images with texts.

        prompts: the texts of each class, whose embeddings are averaged. It is scaled as the base scales its
        scores. Raises: InputError if the base has no text encoder or tokenizer.
        """
        if self._whole["model_type"] != "clip" or "text_projection.weight" not in self.base.tensors:
            raise InputError(
                f"{self.base.source}: has no text encoder to make heads of texts; give the whole CLIP model "
                "as the base, or the heads as <task>.safetensors"
            )
        model: Any = self._whole_model()
        tokenizer = self.transformers.AutoTokenizer.from_pretrained(
            self.directory, trust_remote_code=False, local_files_only=True
        )
        rows = []
        for texts in prompts:
            tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode(), self._running():
                pooled = model.text_model(**tokens).pooler_output
                found = functional.normalize(model.text_projection(pooled), dim=-1)
            rows.append(functional.normalize(found.mean(0), dim=0))
        scale: Tensor = model.logit_scale.detach().exp()
        return torch.stack(rows) * scale

    def _whole_model(self) -> nn.Module:
        vision, self.config = self.config, self._whole
        try:
            module = self.untrained("AutoModel", {})
        finally:
            self.config = vision
        state = {name: self.base.read(name).view(info.shape) for name, info in self.base.tensors.items()}
        load_weights(module, state, self.base.source)
        return module


def _is_vision(name: str) -> bool:
    return not name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale"))
