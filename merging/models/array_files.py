"""Reads the arrays of an .npz file, as numpy.savez and numpy.savez_compressed write them, within bounds."""

import math
import zipfile
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from flexswitch.merging.models.record_files import UnpackedBytes

_NUMBERS = "buif"  # kinds of dtypes


def read_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Returns the array 'x' (example, ...) and the array 'y' (example, ...), None if there is none.

    Raises: ValueError and others on a file that does not hold such arrays.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("not an archive of arrays as numpy.savez writes it")
    with zipfile.ZipFile(path) as archive:
        held = [name.removesuffix(".npy") for name in archive.namelist()]
        if "x" not in held:
            raise ValueError(f"arrays {sorted(held)[:9]}, expected 'x' and 'y'")
        unpacked = UnpackedBytes(path)
        unpacked.add(sum(each.file_size for each in archive.infolist()))
        inputs = _array(archive, "x", unpacked)
        labels = _array(archive, "y", unpacked) if "y" in held else None
    if not inputs.ndim:
        raise ValueError("'x' has no dimension of examples")
    if labels is not None and labels.shape[:1] != inputs.shape[:1]:
        raise ValueError(f"{len(inputs)} inputs and labels of shape {labels.shape}")
    return inputs, labels


def _array(archive: zipfile.ZipFile, name: str, unpacked: UnpackedBytes) -> NDArray[Any]:
    """Returns an array, after a check that the archive holds as many bytes as its header says.

    unpacked: counts its records.
    """
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"'{name}' has the format {version}, expected (1, 0) or (2, 0)")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.kind not in _NUMBERS:
            raise ValueError(f"'{name}' has the type {str(dtype)[:40]}, expected numbers")
        needed, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if min(shape, default=0) < 0 or needed != held:
            raise ValueError(f"'{name}' of shape {shape} needs {needed:,} bytes, and {held:,} follow")
    unpacked.add(0, records=shape[0] if shape else 0)
    with archive.open(member) as file:
        found: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return found
