"""The state of a training on disk, from which an interrupted one continues."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.atomic import atomic_file

Arrays = Mapping[str, NDArray[Any]]

_SUFFIX = ".training"


@dataclass(frozen=True)
class CheckpointFile:
    """Where the state of a training is kept, and after how many steps each."""

    path: Path
    every: int

    def remove(self) -> None:
        """Deletes the file, once the training is over."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class TrainingFile(CheckpointFile):
    """The file with the state of one training. run: identity of the training (`run_identity`)."""

    run: str = ""

    def read(self, check: Callable[[Arrays], None]) -> dict[str, NDArray[Any]] | None:
        """Returns the stored arrays, None if there is no file.

        check: raises ValueError where arrays are missing. Raises: InputError if the file belongs to another
        run or is damaged.
        """
        if not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                stored = {name: arrays[name] for name in arrays.files}
            found = str(stored.pop("run"))
            if found == self.run:
                check(stored)
        except Exception as reason:  # numpy raises a dozen kinds on a damaged file
            raise InputError(f"{self.path}: is damaged ({reason}); delete it to start again") from reason
        if found != self.run:
            raise InputError(
                f"{self.path}: belongs to a training with other inputs or settings; repeat that one, or "
                "delete the file"
            )
        return stored

    def write(self, step: int, arrays: Callable[[], Arrays]) -> None:
        """Writes the arrays, whole or not at all, every `every` steps."""
        if step % self.every:
            return
        with atomic_file(self.path, overwrite=True) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, run=np.array(self.run), **arrays())


def training_file(output: Path) -> Path:
    """Returns the path of the file that holds the training of an output."""
    return output.with_name(output.name + _SUFFIX)


def run_identity(settings: Mapping[str, object], inputs: Mapping[str, object]) -> str:
    """Returns the identity of a training: its settings and inputs as JSON."""
    return json.dumps({"settings": dict(settings), "inputs": dict(inputs)}, sort_keys=True)
