"""What a query index does to its own exemplars."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.zoo import Zoo
from flexswitch.merging.routing.confusion import confusion
from flexswitch.merging.routing.leave_out import NEIGHBOURS
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.routing.query_set import read_query_set


class Report(NamedTuple):
    """counts: (task, routed task), each exemplar left out in turn; learned: the metric has seen them all."""

    tasks: list[str]
    counts: NDArray[np.int64]
    learned: bool


def report_index(zoo: Zoo, device: str) -> Report:
    """Returns where each exemplar of a zoo's query index is led by its ten nearest others.

    Raises: InputError where the zoo has no index, or one of a single exemplar.
    """
    query_set = read_query_set(zoo)
    index = QueryIndex(query_set, NEIGHBOURS, device)
    counts = confusion(index.task_ids, index.leave_one_out(), len(index.tasks))
    projection = query_set.projection
    return Report(index.tasks, counts, projection is not None and projection.metric is not None)
