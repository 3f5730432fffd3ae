"""What can change the bytes of a step's outputs, beside its inputs and options."""

import platform
from collections.abc import Mapping
from typing import Any

from flexswitch.merging.methods.registry import METHODS
from flexswitch.recipes.plan import PlannedStep

# A number changes when the same inputs and options give other bytes, and never otherwise.
FORMATS = {"extract": 1, "compress": 1, "pack": 1, "index": 1, "merge": 1, "eval": 1, "verify": 1, "push": 1}
_CODED = ("compress", "pack")


def algorithm_versions(step: PlannedStep) -> dict[str, int]:
    """Returns the versions of the algorithms and formats that a step uses."""
    found = {step.command: FORMATS[step.command]}
    method = step.arguments.get("method") or step.arguments.get("share")
    if step.command == "compress" and method is None:
        sized = {"exemplars", "target_size"} & set(step.arguments)
        method = "flexswitch" if sized else "t-switch"
    return found | {each.name: each.version for each in METHODS if each.name == method}


def environment(step: PlannedStep) -> dict[str, str]:
    """Returns the versions of other packages that may change bytes, and the kind of processor."""
    import zstandard

    found = {}
    if step.command in _CODED:
        found["zstandard"] = ".".join(map(str, zstandard.ZSTD_VERSION))
    if runs_model(step.command, step.arguments):
        import torch

        device = str(step.arguments.get("device", "cpu"))
        found["torch"] = torch.__version__.split("+")[0]
        found["processor"] = _processor(device)
    return found


def runs_model(command: str, arguments: Mapping[str, Any]) -> bool:
    """Returns whether a step runs a model, which computes a little differently on other processors."""
    return command in ("index", "eval") or arguments.get("exemplars") is not None


def _processor(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Returns in words which versions differ."""
    found = [
        f"{name} {then.get(name, 'none')} then, {now.get(name, 'none')} now"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    return "; ".join(found) or "the same versions and processor"
