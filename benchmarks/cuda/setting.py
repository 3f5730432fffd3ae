"""Where the checks run, how large their models are, and how they compare and time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Figures = Iterator[tuple[str, object]]  # what a check finds: a name, and a number or a word

GIB = 1 << 30


class MismatchError(Exception):
    """A device's answer that is not the CPU's."""


@dataclass(frozen=True)
class Setting:
    """device: "cuda", or "cpu" for a dry run; work: a folder that all checks share."""

    device: str
    work: Path

    @property
    def is_dry(self) -> bool:
        """Whether the same code runs on the CPU, with small sizes."""
        return self.device == "cpu"

    @property
    def size(self) -> str:
        """The size of the model that is timed."""
        return "small" if self.is_dry else "large"

    @property
    def half(self) -> torch.dtype:
        """The dtype of the model that is timed: bfloat16, which Triton's interpreter can't multiply."""
        return torch.float32 if self.is_dry else torch.bfloat16

    def of(self, large: int, small: int) -> int:
        """Returns a size on a device, or in a dry run."""
        return small if self.is_dry else large

    def wait(self) -> None:
        """Waits until the device has done all it was asked for."""
        if not self.is_dry:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], times: int = 5) -> float:
        """Returns the best time of a call, after one that compiles and allocates."""
        call()
        found = []
        for _ in range(times):
            self.wait()
            started = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - started)
        return min(found)

    def peak_bytes(self) -> int:
        """Returns the most memory that tensors took on the device, 0 in a dry run."""
        return 0 if self.is_dry else torch.cuda.max_memory_allocated()


def same(name: str, found: Tensor, expected: Tensor) -> None:
    """Raises: MismatchError unless the device's tensor is the CPU's bit for bit."""
    found = found.detach().cpu()
    if found.dtype != expected.dtype or not torch.equal(found, expected):
        wrong = int((found != expected).sum()) if found.shape == expected.shape else expected.numel()
        raise MismatchError(f"{name}: {wrong:,} of {expected.numel():,} entries are not the CPU's")


def close(name: str, found: Tensor, expected: Tensor, tolerance: float) -> float:
    """Returns the largest difference over the largest magnitude. Raises: MismatchError beyond `tolerance`."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    if found.shape != expected.shape:
        raise MismatchError(f"{name}: has the shape {list(found.shape)}, the CPU's {list(expected.shape)}")
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if not error <= tolerance:
        raise MismatchError(f"{name}: differs from the CPU's by {error:.1e}, at most {tolerance:.0e} is due")
    return error
