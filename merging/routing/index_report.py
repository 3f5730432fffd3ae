"""The confusion of a query index's own exemplars."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.zoo import Zoo
from flexswitch.merging.routing.confusion import confusion
from flexswitch.merging.routing.cross_validation import NEIGHBOURS
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.routing.query_set import read_query_set


class Report(NamedTuple):
    """counts: (task, routed task), with each exemplar left out of the search in turn.

    held_out: the share (%) of exemplars routed to their own task when they are held out from learning the
    metric too; None if no metric was learned. The counts are too optimistic for a learned metric.
    """

    tasks: list[str]
    counts: NDArray[np.int64]
    held_out: float | None


def report_index(zoo: Zoo, device: str) -> Report:
    """Returns the confusion when the ten nearest other exemplars route each exemplar of a zoo's query index.

    Raises: InputError if the zoo has no index, or its index has a single exemplar.
    """
    query_set = read_query_set(zoo)
    index = QueryIndex(query_set, NEIGHBOURS, device)
    counts = confusion(index.task_ids, index.leave_one_out(), len(index.tasks))
    record = zoo.record.index
    held_out = None
    if record is not None and record.metric == "learned" and record.accuracy is not None:
        held_out = record.accuracy.learned_held_out
    return Report(index.tasks, counts, held_out)
