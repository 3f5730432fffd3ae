"""Checks of decoding, adding and restoring on a device, and the speed of restoring."""

from unittest.mock import patch

import torch
from models import artifacts, decoder
from setting import GIB, Figures, Setting, same

from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.switching.bit_planes import BitPlaneMatrix
from flexswitch.merging.switching.delta_matrix import cpu_matrix, read_delta_matrix, untransposed
from flexswitch.merging.task_vectors.add_task import add_task
from flexswitch.merging.task_vectors.apply import COMPILED_DTYPES, ScaledLevels, add_on_device
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.restore import restore

METHODS = {"t-switch": {"drop": 0.6}, "tvq": {"bits": 3}}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def decode(setting: Setting) -> Figures:
    """Compares delta matrices as bit planes with those of the CPU, bit for bit."""
    device, model = torch.device(setting.device), decoder("small", "cpu")
    for method, settings in METHODS.items():
        vector = ArtifactVector(artifacts(setting.work / method, model, 1, method, **settings)[0])
        planes = 0
        for name, transposed in ((name, flag) for name in vector.tensors for flag in (False, True)):
            found = read_delta_matrix(vector, name, transposed, 1.0, device)
            planes += isinstance(untransposed(found), BitPlaneMatrix)
            same(f"{method}, '{name}'", found.dense(), cpu_matrix(vector, name).dense())
        yield f"{method}, matrices as bit planes", planes


def add(setting: Setting) -> Figures:
    """Compares a model to which a task was added on the device with the CPU's, bit for bit.

    In a dry run the device's code adds on the CPU.
    """
    for method, settings in METHODS.items():
        artifact = artifacts(setting.work / method, decoder("small", "cpu"), 1, method, **settings)[0]
        for name, dtype in DTYPES.items():
            expected = decoder("small", "cpu", dtype).state_dict()
            found = {key: tensor.clone().to(setting.device) for key, tensor in expected.items()}
            add_task(expected, artifact, 0.7, check_base=False)
            _add_on_device(setting, found, artifact, 0.7)
            for key, tensor in expected.items():
                same(f"{method}, {name}, '{key}'", found[key], tensor)
            yield f"{method}, {name}", "equal"


def restored(setting: Setting) -> Figures:
    """Compares a task added to the base on the device with the restored checkpoint, bit for bit."""
    folder = setting.work / "t-switch"
    artifact = artifacts(folder, decoder("small", "cpu"), 1, drop=0.6)[0]
    weights = {
        name: tensor.to(setting.device) for name, tensor in decoder("small", "cpu").state_dict().items()
    }
    _add_on_device(setting, weights, artifact, 1.0)
    for name, tensor in restore(folder / "base.safetensors", artifact).items():
        same(f"'{name}'", weights[name], tensor)
    yield "tensors, equal", len(weights)


def restore_speed(setting: Setting) -> Figures:
    """Times adding a task to the weights of a 1 B model in bfloat16, beside a copy of them on the device."""
    model = decoder(setting.size, setting.device, torch.bfloat16)
    artifact = artifacts(setting.work / setting.size, model, 1, drop=0.6)[0]
    weights = dict(model.state_dict())
    size = 2 * sum(tensor.nbytes for tensor in weights.values())  # read and written
    yield "parameters", size // 4
    copies = [torch.empty_like(tensor) for tensor in weights.values()]
    pairs = list(zip(copies, weights.values(), strict=True))
    copy = setting.seconds(lambda: [one.copy_(other) for one, other in pairs])
    yield "copy, GB/s", size / copy / 1e9
    added = setting.seconds(lambda: _add_on_device(setting, weights, artifact, 1e-3), 3)
    yield "add_task, GB/s", size / added / 1e9
    yield "add_task, over the copy", added / copy
    decoded = [
        (
            weights[name].view(-1),
            artifact.sparse(name),
            ScaledLevels(own.bits, own.scale, 1e-3, own.zero),
            name,
        )
        for name, own in artifact.header.tensors.items()
    ]
    added = setting.seconds(lambda: [add_on_device(*each) for each in decoded], 3)
    yield "add_task after decoding, GB/s", size / added / 1e9
    yield "add_task after decoding, over the copy", added / copy
    yield "peak memory, GiB", setting.peak_bytes() / GIB


def _add_on_device(
    setting: Setting, weights: dict[str, torch.Tensor], artifact: Artifact, factor: float
) -> None:
    """Calls add_task, which a dry run makes use the device's code on the CPU."""
    compiled = () if setting.is_dry else COMPILED_DTYPES
    with patch.dict(add_task.__globals__, COMPILED_DTYPES=compiled):
        add_task(weights, artifact, factor, check_base=False)
