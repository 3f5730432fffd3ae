"""The state of a learning on disk, so that one that was interrupted goes on where it stopped."""

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
_SUMS = 3  # numbers that are held as "sums"


@dataclass(frozen=True)
class TrainingCheckpoint(CheckpointFile):
    """The state of a training on disk; run: what a state belongs to."""

    run: str = ""

    def restore(self, state: TrainingState) -> None:
        """Puts the saved state into a learner, where there is one.

        Raises: InputError where it is another run's, or damaged.
        """
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                saved = {name: arrays[name] for name in arrays.files}
            found = str(saved["run"])
            _check_names(state, saved)
        except Exception as reason:  # numpy raises a dozen kinds on a damaged file
            raise InputError(f"{self.path}: is damaged ({reason}); delete it to start anew") from reason
        if found != self.run:
            raise InputError(
                f"{self.path}: belongs to a learning of other inputs or with other settings; repeat that "
                "one, or delete the file"
            )
        _put(state, saved)

    def save(self, state: TrainingState) -> None:
        """Writes the state, whole or not at all, if it is time to."""
        if state.step % self.every:
            return
        with atomic_file(self.path, overwrite=True) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, run=np.array(self.run), **_arrays(state))


def training_checkpoint_file(output: Path) -> Path:
    """Returns where the state of an output's learning is kept."""
    return output.with_name(output.name + _SUFFIX)


def _arrays(state: TrainingState) -> dict[str, NDArray[np.float64]]:
    arrays = {**state.parameters.arrays(), "factors": state.factors}
    for name, (mean, square) in state.adam.moments.items():
        arrays |= {f"{name}.mean": mean, f"{name}.square": square}
    arrays["counts"] = np.array([state.step, state.adam.count], np.float64)
    arrays["sums"] = np.array([state.slope_product, state.rate_square, state.step_size])
    arrays["history"] = np.array(state.history, np.float64).reshape(-1, len(Progress._fields))
    return arrays


def _check_names(state: TrainingState, saved: Mapping[str, NDArray[np.float64]]) -> None:
    """Raises: ValueError where something is missing, as when the end of a file, its directory, is damaged."""
    arrays = [name + part for name in state.parameters.arrays() for part in ("", ".mean", ".square")]
    missing = {*arrays, "factors", "counts", "sums", "history"} - set(saved)
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if len(saved["sums"]) != _SUMS:
        raise ValueError(f"it holds {len(saved['sums'])} sums, expected {_SUMS}: another version wrote it")


def _put(state: TrainingState, saved: Mapping[str, NDArray[np.float64]]) -> None:
    for name, array in state.parameters.arrays().items():
        array[:] = saved[name]
        state.adam.moments[name] = (saved[f"{name}.mean"], saved[f"{name}.square"])
    state.factors[:] = saved["factors"]
    state.step, state.adam.count = map(int, saved["counts"])
    state.slope_product, state.rate_square, state.step_size = map(float, saved["sums"])
    state.history = [Progress(int(step), loss, bits) for step, loss, bits in saved["history"].tolist()]


def run_identity(settings: Mapping[str, object], inputs: Mapping[str, object]) -> str:
    """Returns what a state belongs to: any difference would lead elsewhere."""
    return json.dumps({"settings": dict(settings), "inputs": dict(inputs)}, sort_keys=True)
