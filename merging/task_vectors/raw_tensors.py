"""Tensors as the bytes that files store, and back."""

import torch
from torch import Tensor

from flexswitch.codecs.format.records import RawTensor
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.dtypes import TORCH_DTYPES


def raw_tensor(checkpoint: Checkpoint, name: str) -> RawTensor:
    """Returns one tensor of a checkpoint as bytes."""
    info = checkpoint.tensors[name]
    return RawTensor(info.dtype, info.shape, tensor_bytes(checkpoint.read(name)))


def tensor_bytes(tensor: Tensor) -> bytes:
    """Returns a tensor's bytes, row by row."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def to_torch(raw: RawTensor) -> Tensor:
    """Returns raw bytes as a tensor."""
    dtype = TORCH_DTYPES[raw.dtype]
    if not raw.data:
        return torch.empty(raw.shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw.data), dtype=dtype).reshape(raw.shape)
