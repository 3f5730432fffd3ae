"""The compression methods by name; adding one is its file, its line here and a test.

Those in METHODS take one tensor's delta at a time. Those in PLANNED take the whole task vector first, and
return the plan by which each of its tensors is compressed.
"""

import importlib
from collections.abc import Callable
from functools import partial as bind
from typing import Any

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.merging.compression.bin_discard import bin_discard
from flexswitch.merging.compression.bitdelta import bitdelta
from flexswitch.merging.compression.compeft import compeft
from flexswitch.merging.compression.dare import dare
from flexswitch.merging.compression.delta import Compressed
from flexswitch.merging.compression.p_discard import p_discard
from flexswitch.merging.compression.plan import Job, Plan
from flexswitch.merging.compression.t_switch import t_switch
from flexswitch.merging.compression.tvq import tvq
from flexswitch.merging.methods.settings import setting_names
from flexswitch.merging.task_vectors.task_vector import TaskVector


def _flexswitch(*arguments: Any, **settings: Any) -> Plan:
    """Returns the plan of the learned method, which is imported when it is asked for."""
    module = importlib.import_module("flexswitch.merging.flex_switch.flex_switch")
    plan: Plan = module.flexswitch(*arguments, **settings)
    return plan


METHODS: dict[str, Callable[..., Compressed]] = {
    "t-switch": t_switch,
    "p-discard": p_discard,
    "bin-discard": bin_discard,
    "dare": dare,
    "tvq": tvq,
    "bitdelta": bitdelta,
}
PLANNED: dict[str, Callable[..., Plan]] = {
    "compeft": compeft,
    "flexswitch": _flexswitch,
}
NAMES = (*METHODS, *PLANNED)


def get_method(name: str) -> Callable[..., Compressed | Plan]:
    """Returns the compression method of that name, planned or not. Raises: UsageError."""
    if name not in NAMES:
        raise UsageError(unknown_name("compression method", name, NAMES))
    if name == "flexswitch":
        found: Callable[..., Plan] = importlib.import_module(
            "flexswitch.merging.flex_switch.flex_switch"
        ).flexswitch
        return found
    return METHODS[name] if name in METHODS else PLANNED[name]


def methods_with(setting: str) -> list[str]:
    """Returns the names of the methods that have a setting."""
    return [name for name in NAMES if setting in setting_names(get_method(name))]


def learns(settings: dict[str, Any]) -> bool:
    """Returns whether a method with these settings learns from examples: those that do have an objective."""
    return bool(settings.get("objective", "none") != "none")


def plan(name: str, vector: TaskVector, job: Job, settings: dict[str, Any]) -> Plan:
    """Returns how the method of that name compresses a task vector's tensors. Raises: UsageError."""
    if name in PLANNED:
        return PLANNED[name](vector, job, **settings)
    get_method(name)
    return Plan(bind(METHODS[name], **settings))
