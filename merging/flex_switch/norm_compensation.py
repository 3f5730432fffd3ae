"""How much scales make up for dropped entries, where no example says. Source: docs/methods.md §4."""

import math

from flexswitch.merging.flex_switch.weight_decay import RestVector
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.relative_change import change_against
from flexswitch.merging.task_vectors.task_vector import TaskVector
from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile

# Shares of the power, and ‖τ‖ / ‖θ‖ where each has fallen to 1/e of what it is for a small change.
_SHARES = ((0.2, 0.02), (0.5, 0.3))


def default_power(vector: TaskVector) -> float:
    """Returns the exponent of `compensate_norm`, which falls with the distance that the weights moved."""
    moved = _moved(vector)
    return sum(share * math.exp(-((moved / change) ** 2)) for share, change in _SHARES)


def _moved(vector: TaskVector) -> float:
    """Returns ‖τ‖ / ‖θ‖. Raises: TypeError for a vector that does not tell it."""
    if isinstance(vector, TaskVectorFile):
        return vector.header.relative_change
    if isinstance(vector, CheckpointPair | LoraVector | RestVector):
        return change_against(vector.base, vector)
    raise TypeError(f"{vector.source}: {type(vector).__name__} is compressed already")
