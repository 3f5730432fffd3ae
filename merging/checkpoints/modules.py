"""The modules of a sentence-transformers model: folders beside the model's own, which may have weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.tensor_names import MODULE_FOLDER
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_json

if TYPE_CHECKING:
    from torch import Tensor

MODULES = "modules.json"


class ModulesCheckpoint:
    """A model and the modules behind it, whose tensors are named `FOLDER/NAME`."""

    def __init__(self, model: Checkpoint, modules: dict[str, Checkpoint]) -> None:
        self.source, self.directory, self.hub_id = model.source, model.directory, model.hub_id
        self.notes = model.notes
        self.files = [file for each in (model, *modules.values()) for file in each.files]
        self.aliases = dict(model.aliases)
        self._places = {name: (model, name) for name in model.tensors}
        self._places |= {
            f"{folder}/{name}": (module, name)
            for folder, module in modules.items()
            for name in module.tensors
        }
        self.tensors = {
            name: checkpoint.tensors[own] for name, (checkpoint, own) in sorted(self._places.items())
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> "Tensor":
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        checkpoint, own = self._places[name]
        return checkpoint.read(own, start, stop)

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon."""
        checkpoint, own = self._places[name]
        checkpoint.read_ahead(own)


def module_folders(directory: Path | None) -> list[str]:
    """Returns the folders of the modules beside a model, none without a modules.json. Raises: InputError."""
    if directory is None or not (directory / MODULES).is_file():
        return []
    modules = read_json(directory / MODULES)
    paths = [each.get("path") if isinstance(each, dict) else None for each in modules or ()]
    if not isinstance(modules, list) or not all(isinstance(path, str) for path in paths):
        raise InputError(f"{directory / MODULES}: expected a list of modules, each with a 'path'")
    return [str(path) for path in paths if MODULE_FOLDER.fullmatch(str(path))]
