"""Checks the types of what `SwitchedModel` is called with."""

from collections.abc import Mapping

import torch
from torch import nn

from flexswitch.codecs.argument_types import NUMBER, PATH, check_argument, is_number, is_path
from flexswitch.codecs.format.container import Artifact


def check_arguments(
    module: object,
    zoo: object,
    router: object,
    lambda_: object,
    cache_bytes: object,
    rename: object,
    base: object,
) -> None:
    """Raises: UsageError that names an argument of a wrong type."""
    tasks = zoo.values() if isinstance(zoo, dict) else ()  # a zoo on disk opens its tasks itself
    are_tasks = isinstance(zoo, Mapping) and all(
        isinstance(each, Artifact) or hasattr(each, "identity") for each in tasks
    )
    scripted = isinstance(module, torch.jit.ScriptModule)
    callable_module = isinstance(module, nn.Module) and (scripted or _has_forward(module))
    for name, value, fits, expected in (
        ("module", module, callable_module, "a torch module with a forward method"),
        ("module", module, not scripted, "a module that is not compiled by torch.jit"),
        ("module", module, not _lacks_values(module), "a module with its weights, not on the meta device"),
        ("zoo", zoo, are_tasks, "what open_zoo returns, or artifacts by the names of tasks"),
        ("router", router, router is None or callable(router), "a function of a batch, or None"),
        ("lambda_", lambda_, is_number(lambda_), NUMBER),
        ("cache_bytes", cache_bytes, is_number(cache_bytes), NUMBER),
        ("rename", rename, callable(rename), "a function of a tensor's name"),
        ("base", base, base is None or is_path(base), f"{PATH}, or None"),
    ):
        check_argument("SwitchedModel", name, value, fits, expected)


def _has_forward(module: nn.Module) -> bool:
    return getattr(module.forward, "__func__", None) is not nn.Module.forward


def _lacks_values(module: object) -> bool:
    return isinstance(module, nn.Module) and any(
        tensor.is_meta for tensor in (*module.parameters(), *module.buffers())
    )
