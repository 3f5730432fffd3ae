"""Training checkpoints: the state of a training on disk, from which an interrupted one continues."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.atomic import atomic_file
from flexswitch.merging.compression.plan import CheckpointFile, Progress
from flexswitch.merging.flex_switch.training_step import TrainingState

_SUFFIX = ".training"
_SUMS = 3  # how many numbers "sums" holds


@dataclass(frozen=True)
class TrainingCheckpoint(CheckpointFile):
    """The file with the state of a training. run: identity of the training (`run_identity`)."""

    run: str = ""

    def restore(self, state: TrainingState) -> None:
        """Restores the state from the file, if it exists.

        Raises: InputError if the file belongs to another run or is damaged.
        """
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                stored = {name: arrays[name] for name in arrays.files}
            found = str(stored["run"])
            _check_names(state, stored)
        except Exception as reason:  # numpy raises a dozen kinds on a damaged file
            raise InputError(f"{self.path}: is damaged ({reason}); delete it to start again") from reason
        if found != self.run:
            raise InputError(
                f"{self.path}: belongs to a training with other inputs or settings; repeat that one, or "
                "delete the file"
            )
        _put(state, stored)

    def save(self, state: TrainingState) -> None:
        """Writes the state, whole or not at all, every `every` steps."""
        if state.step % self.every:
            return
        with atomic_file(self.path, overwrite=True) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, run=np.array(self.run), **_arrays(state))


def training_checkpoint_file(output: Path) -> Path:
    """Returns the path of an output's training checkpoint."""
    return output.with_name(output.name + _SUFFIX)


def _arrays(state: TrainingState) -> dict[str, NDArray[np.float64]]:
    arrays = {**state.parameters.arrays(), "factors": state.factors}
    for name, (mean, square) in state.adam.moments.items():
        arrays |= {f"{name}.mean": mean, f"{name}.square": square}
    arrays["counts"] = np.array([state.step, state.adam.count], np.float64)
    arrays["sums"] = np.array([state.slope_product, state.rate_square, state.step_size])
    arrays["history"] = np.array(state.history, np.float64).reshape(-1, len(Progress._fields))
    return arrays


def _check_names(state: TrainingState, stored: Mapping[str, NDArray[np.float64]]) -> None:
    """Raises: ValueError if an array is missing, as when the end of the file is damaged."""
    arrays = [name + part for name in state.parameters.arrays() for part in ("", ".mean", ".square")]
    missing = {*arrays, "factors", "counts", "sums", "history"} - set(stored)
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if len(stored["sums"]) != _SUMS:
        raise ValueError(
            f"it holds {len(stored['sums'])} sums, expected {_SUMS}: the file is from another version"
        )


def _put(state: TrainingState, stored: Mapping[str, NDArray[np.float64]]) -> None:
    for name, array in state.parameters.arrays().items():
        array[:] = stored[name]
        state.adam.moments[name] = (stored[f"{name}.mean"], stored[f"{name}.square"])
    state.factors[:] = stored["factors"]
    state.step, state.adam.count = map(int, stored["counts"])
    state.slope_product, state.rate_square, state.step_size = map(float, stored["sums"])
    state.history = [Progress(int(step), loss, bits) for step, loss, bits in stored["history"].tolist()]


def run_identity(settings: Mapping[str, object], inputs: Mapping[str, object]) -> str:
    """Returns the identity of a training: its settings and inputs as JSON."""
    return json.dumps({"settings": dict(settings), "inputs": dict(inputs)}, sort_keys=True)
