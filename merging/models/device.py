"""Checks the value of --device."""

from flexswitch.codecs.errors import InputError, UsageError, unknown_name


def check_device(device: str) -> None:
    """Raises: UsageError on a name other than cpu or cuda; InputError if there is no CUDA device."""
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device: {unknown_name('device', device, ('cpu', 'cuda'))}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no CUDA device here; use --device cpu")
