"""A checkpoint in safetensors files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flexswitch.codecs.errors import FlexswitchError, InputError
from flexswitch.codecs.format.safetensors_file import RangeReader, StoredTensor
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.dtypes import TORCH_DTYPES


class SafetensorsCheckpoint:
    """Tensors in one or more safetensors files."""

    def __init__(
        self,
        source: str,
        files: list[Path],
        directory: Path | None,
        error: type[FlexswitchError] = InputError,
    ) -> None:
        self.source = source
        self.files: Sequence[Path] = files
        self.directory = directory
        self.hub_id: str | None = None
        self.notes: list[str] = []
        self.aliases: dict[str, str] = {}
        self._stored: dict[str, tuple[Path, StoredTensor]] = {}
        self.metadata: dict[str, str] = {}
        self._readers = {path: RangeReader(path, error) for path in files}
        for path, file in self._readers.items():
            header = file.header()
            file.close()
            self.metadata |= header.metadata
            for name, stored in header.tensors.items():
                if stored.dtype not in TORCH_DTYPES:
                    raise InputError(
                        f"{path}: tensor '{name}' has the dtype {stored.dtype}, which is not handled"
                    )
                self._stored[name] = (path, stored)
        self.tensors = {
            name: TensorInfo(stored.dtype, stored.shape) for name, (_, stored) in sorted(self._stored.items())
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        path, stored = self._stored[name]
        stop = self.tensors[name].entries if stop is None else stop
        dtype = TORCH_DTYPES[stored.dtype]
        if stop <= start:
            return torch.empty(0, dtype=dtype)
        width = dtype.itemsize
        data = self._readers[path].read(stored.offset + start * width, (stop - start) * width)
        return torch.from_numpy(data).view(dtype)

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon."""
        path, stored = self._stored[name]
        self._readers[path].read_ahead(stored.offset, stored.size)
