"""Quantised checkpoints: FP8 weights are dequantised as they are read; all other formats are refused by name.

An FP8 weight is its code times a scale that is stored beside it: one for the tensor, each row or each block.
Source: transformers, integrations/finegrained_fp8.py (Fp8Dequantize); compressed-tensors, float-quantized.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import entries_named, read_quantisation

_FP8 = ("F8_E4M3", "F8_E5M2")
_CODES = (*_FP8, "I8", "U8")
_SCALES = ("_scale_inv", "_scale")
# What FP8 formats store beside a weight and its scale, for activations and the cache of keys and values.
_RUNTIME = re.compile(r"(?:.*\.)?(?:(?:input|output|activation|k|v|q)_scale(?:_ub|_inv)?|weight_shape)")
# Parts of names that only one format has.
_FORMATS = {
    "GPTQ": re.compile(r".*\.g_idx"),
    "AWQ or GPTQ": re.compile(r".*\.(?:qweight|qzeros)"),
    "bitsandbytes": re.compile(r".*\.(?:absmax|quant_map|SCB|quant_state\..*|nested_absmax)"),
    "compressed-tensors": re.compile(r".*\.weight_packed"),
    "MXFP4": re.compile(r".*_proj_blocks"),
    "NVFP4": re.compile(r".*\.weight_scale_2"),
    "HQQ": re.compile(r".*\.W_q"),
}
# What stands beside codes of any format, in their module.
_SCALE_BESIDE = re.compile(r"(?:weight[^.]*\.)?[^.]*scale[^.]*")
_USUAL_BLOCK = 128


class _Grid(NamedTuple):
    """A weight as stacked matrices of rows × columns entries, with scales for blocks of height × width."""

    rows: int
    columns: int
    height: int
    width: int
    scale_rows: int
    scale_columns: int


class DequantisedCheckpoint:
    """A checkpoint whose FP8 weights are read as bfloat16: float32(code) · float32(scale), rounded once."""

    def __init__(self, checkpoint: Checkpoint, scales: Mapping[str, str], blocks: object) -> None:
        self.source, self.directory, self.hub_id = checkpoint.source, checkpoint.directory, checkpoint.hub_id
        self.files, self.aliases = checkpoint.files, checkpoint.aliases
        self.notes = [*checkpoint.notes, f"{self.source}: its FP8 weights are dequantised to bfloat16"]
        self._checkpoint, self._scales = checkpoint, scales
        self._grids = {name: _grid(checkpoint, name, scale, blocks) for name, scale in scales.items()}
        dropped = set(scales.values())
        self.tensors = {
            name: TensorInfo("BF16", info.shape) if name in scales else info
            for name, info in checkpoint.tensors.items()
            if name not in dropped and not _RUNTIME.fullmatch(name)
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        grid = self._grids.get(name)
        if grid is None:
            return self._checkpoint.read(name, start, stop)
        stop = self.tensors[name].entries if stop is None else stop
        if stop <= start:
            return torch.empty(0, dtype=torch.bfloat16)
        first, last = start // grid.columns, -(-stop // grid.columns)
        codes = self._checkpoint.read(name, first * grid.columns, last * grid.columns).to(torch.float32)
        rows = torch.arange(first, last)
        places = rows // grid.rows * grid.scale_rows + rows % grid.rows // grid.height
        scales = self._read_scales(name).reshape(-1, grid.scale_columns)[places]  # (row, column of scales)
        factors = scales.repeat_interleave(grid.width, 1)[:, : grid.columns]
        weights = (codes.reshape(-1, grid.columns) * factors).to(torch.bfloat16)
        return weights.reshape(-1)[start - first * grid.columns : stop - first * grid.columns]

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon."""
        self._checkpoint.read_ahead(name)

    def _read_scales(self, name: str) -> Tensor:
        scales = self._checkpoint.read(self._scales[name])
        if scales.dtype == torch.uint8:  # the exponents of MXFP8
            return (scales.to(torch.float32) - 127).exp2()
        return scales.to(torch.float32)


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint of weights: itself, or its FP8 weights dequantised.

    Raises: InputError naming the format if it holds other codes.
    """
    tensors, settings = checkpoint.tensors, read_quantisation(checkpoint)
    scales = {
        name: f"{name}{ending}"
        for name, info in tensors.items()
        for ending in _SCALES
        if info.dtype in _FP8 and f"{name}{ending}" in tensors
    }
    formats = [kind for kind, pattern in _FORMATS.items() if any(map(pattern.fullmatch, tensors))]
    codes = {name for name, info in tensors.items() if len(info.shape) > 1 and info.dtype in _CODES}
    named = [*_named(settings, "quant_method"), *_named(settings, "quant_algo"), *formats]
    codes -= scales.keys() | set(scales.values())
    if codes and not named:
        others = [name for name in tensors if "scale" in name and name not in scales.values()]
        named = [f"scales such as '{name}'" for name in _scales_beside(sorted(codes), others)][:1]
    if formats or (named and codes):
        raise InputError(
            f"{checkpoint.source}: is quantised by {named[0]}: its tensors hold codes, not weights; give the "
            "checkpoint from before it was quantised"
        )
    if not scales:
        return checkpoint
    return DequantisedCheckpoint(checkpoint, scales, next(_named(settings, "weight_block_size"), None))


def _scales_beside(codes: Iterable[str], scales: Iterable[str]) -> Iterator[str]:
    """Yields the scales that lie in the module of a tensor that may hold codes."""
    ours = [name for name in scales if not _RUNTIME.fullmatch(name)]
    for name in codes if ours else ():
        before, weight, _ = name.rpartition("weight")
        module = before if weight else name[: name.rfind(".") + 1]
        for scale in ours:
            if scale.startswith(module) and _SCALE_BESIDE.fullmatch(scale.removeprefix(module)):
                yield scale


def _named(settings: list[Any], key: str) -> Iterator[Any]:
    for each in settings:
        yield from entries_named(each, key)


def _grid(checkpoint: Checkpoint, name: str, scale: str, blocks: object) -> _Grid:
    """Returns how the scales lie over a weight. Raises: InputError if they do not fit it."""
    shape, found = checkpoint.tensors[name].shape, checkpoint.tensors[scale].shape
    rows, columns = math.prod(shape[:-1]), math.prod(shape[-1:])
    if math.prod(found) == 1:
        return _Grid(max(1, rows), columns, max(1, rows), columns, 1, 1)
    fitted = (*found, 1) if len(found) == len(shape) - 1 else found  # one for each row
    if len(shape) > 1 and len(fitted) == len(shape) and fitted[:-2] == shape[:-2]:
        usual = blocks if isinstance(blocks, list) and len(blocks) == 2 else [_USUAL_BLOCK] * 2
        height, width = map(_block, shape[-2:], fitted[-2:], usual)
        if height and width:
            return _Grid(shape[-2], columns, height, width, fitted[-2], fitted[-1])
    raise InputError(
        f"{checkpoint.source}: the scales '{scale}' of shape {list(found)} do not fit '{name}' of shape "
        f"{list(shape)}; expected one for the tensor, for each row, or for each block"
    )


def _block(size: int, count: int, usual: Any) -> int:
    """Returns how many of `size` entries share one of `count` scales, 0 if that is not clear."""
    for block in (size if count == 1 else 0, usual, size // max(1, count)):
        if isinstance(block, int) and block > 0 and -(-size // block) == count:
            return block
    return 0
