"""Training checkpoints: the state of a training on disk, from which an interrupted one continues."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.training_file import TrainingFile
from flexswitch.merging.compression.plan import Progress
from flexswitch.merging.flex_switch.training_step import TrainingState

_SUMS = 3  # how many numbers "sums" holds


@dataclass(frozen=True)
class TrainingCheckpoint(TrainingFile):
    """The file with the state of a training."""

    def restore(self, state: TrainingState) -> None:
        """Restores the state from the file, if it exists.

        Raises: InputError if the file belongs to another run or is damaged.
        """
        stored = self.read(lambda stored: _check_names(state, stored))
        if stored is not None:
            _put(state, stored)

    def save(self, state: TrainingState) -> None:
        """Writes the state, whole or not at all, every `every` steps."""
        self.write(state.step, lambda: _arrays(state))


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
