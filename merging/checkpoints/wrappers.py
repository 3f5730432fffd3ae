"""Removes from tensor names the parts that a wrapper around a model adds to them."""

from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.renamed import renamed

# torch.compile, fully sharded training and activation checkpointing add these, wherever a module is wrapped.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Data-parallel training adds this one. A model may have a module of that name itself.
_PARALLEL = "module"


def unwrapped(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint under the names that its tensors have in the model alone."""
    names = {name: _without(name, _WRAPPERS) for name in (*checkpoint.tensors, *checkpoint.aliases)}
    if all(name.startswith(f"{_PARALLEL}.") for name in names.values()):
        names = {name: new.removeprefix(f"{_PARALLEL}.") for name, new in names.items()}
    return renamed(checkpoint, names)


def without_parallel(name: str) -> str:
    """Returns a name without any part that data-parallel training may have added."""
    return _without(name, {_PARALLEL})


def _without(name: str, parts: set[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in parts)
