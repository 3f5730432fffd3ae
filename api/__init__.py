"""flexswitch stores fine-tuned checkpoints as tiny task vectors and puts them back together.

The names below are the public interface; nothing else is promised. Each is loaded when it is first used.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexswitch.codecs.errors import FlexswitchError
    from flexswitch.codecs.format.container import open_artifact
    from flexswitch.merging.checkpoints.opening import open_checkpoint
    from flexswitch.merging.commands.compress import compress
    from flexswitch.merging.commands.extract import extract
    from flexswitch.merging.commands.index import index
    from flexswitch.merging.commands.merge import merge
    from flexswitch.merging.commands.pack import pack
    from flexswitch.merging.switching.switched_model import SwitchedModel
    from flexswitch.merging.task_vectors.add_task import add_task
    from flexswitch.merging.task_vectors.restore import restore
    from flexswitch.merging.zoos.opening import open_zoo

__all__ = (
    "FlexswitchError",
    "SwitchedModel",
    "add_task",
    "compress",
    "extract",
    "index",
    "merge",
    "open_artifact",
    "open_checkpoint",
    "open_zoo",
    "pack",
    "restore",
)

__version__: str

_MODULES = {
    "FlexswitchError": "flexswitch.codecs.errors",
    "SwitchedModel": "flexswitch.merging.switching.switched_model",
    "add_task": "flexswitch.merging.task_vectors.add_task",
    "compress": "flexswitch.merging.commands.compress",
    "extract": "flexswitch.merging.commands.extract",
    "index": "flexswitch.merging.commands.index",
    "merge": "flexswitch.merging.commands.merge",
    "open_artifact": "flexswitch.codecs.format.container",
    "open_checkpoint": "flexswitch.merging.checkpoints.opening",
    "open_zoo": "flexswitch.merging.zoos.opening",
    "pack": "flexswitch.merging.commands.pack",
    "restore": "flexswitch.merging.task_vectors.restore",
}

_folder = os.path.dirname(os.path.abspath(__file__))
if os.path.basename(_folder) == "api":  # an editable install: the other folders are beside this one
    __path__.append(os.path.dirname(_folder))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("flexswitch")
    elif name in _MODULES:
        from importlib import import_module

        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'flexswitch' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
