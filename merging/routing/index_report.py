"""What a query index does to its own exemplars."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.zoo import Zoo
from flexswitch.merging.routing.confusion import confusion
from flexswitch.merging.routing.cross_validation import NEIGHBOURS
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.routing.query_set import read_query_set


class Report(NamedTuple):
    """counts: (task, routed task), each exemplar left out in turn.

    held_out: the share (%) that leads to its own task while held out from learning the metric too, None where
    none was learned; then the counts are too good.
    """

    tasks: list[str]
    counts: NDArray[np.int64]
    held_out: float | None


def report_index(zoo: Zoo, device: str) -> Report:
    """Returns where each exemplar of a zoo's query index is led by its ten nearest others.

    Raises: InputError where the zoo has no index, or one of a single exemplar.
    """
    query_set = read_query_set(zoo)
    index = QueryIndex(query_set, NEIGHBOURS, device)
    counts = confusion(index.task_ids, index.leave_one_out(), len(index.tasks))
    record = zoo.record.index
    held_out = None
    if record is not None and record.metric == "learned" and record.accuracy is not None:
        held_out = record.accuracy.learned_held_out
    return Report(index.tasks, counts, held_out)
