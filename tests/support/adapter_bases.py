"""Text and image bases and their adapters, for the tests of model adapters."""

import json

from support.tiny_models import save_image_base, save_text_base

from flexswitch.merging.checkpoints.architecture import ADAPTERS
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter

TEXT, IMAGE, ENCODER, CAUSAL, TO_TEXT = ADAPTERS[:5]


def save_bases(folder):
    return {"text": save_text_base(folder / "text"), "image": save_image_base(folder / "image")}


def adapter_of(name, base, given=None):
    return get_adapter(open_checkpoint(str(base)), name, given)


def change_config(folder, file="config.json", **entries):
    path = folder / file
    settings = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in settings.items() if value != "left out"}))
