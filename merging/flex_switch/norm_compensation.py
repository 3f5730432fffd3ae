"""How much scales make up for dropped entries, where no example says. Source: docs/methods.md §4."""

import math

from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.relative_change import change_against
from flexswitch.merging.task_vectors.task_vector import TaskVector
from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile

_MOST, _CHANGE = 0.7, 0.3  # the power of a small change, and ‖τ‖ / ‖θ‖ where it has fallen to 1/e


def default_power(vector: TaskVector) -> float:
    """Returns the exponent of `compensate_norm`, which falls with the distance that the weights moved."""
    return _MOST * math.exp(-((_moved(vector) / _CHANGE) ** 2))


def _moved(vector: TaskVector) -> float:
    """Returns ‖τ‖ / ‖θ‖. Raises: TypeError for a vector that does not tell it."""
    if isinstance(vector, TaskVectorFile):
        return vector.header.relative_change
    if isinstance(vector, CheckpointPair | LoraVector):
        return change_against(vector.base, vector)
    raise TypeError(f"{vector.source}: {type(vector).__name__} is compressed already")
