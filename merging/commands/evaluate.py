"""Scores methods on the test examples of a zoo's tasks."""

from typing import NamedTuple

from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.evaluation.methods import score
from flexswitch.merging.evaluation.scores import Score
from flexswitch.merging.evaluation.setup import Request, open_evaluation


class Evaluated(NamedTuple):
    """The scores, a sample's seconds in the base's forward pass, and the bytes of the zoo's index."""

    scores: list[Score]
    forward_seconds: float
    index_bytes: int | None


def evaluate(request: Request, *, reporter: Reporter = SILENT) -> Evaluated:
    """Returns the scores of the methods that are asked for. Raises: FlexswitchError."""
    evaluation = open_evaluation(request)
    count = len(request.methods)
    scores = []
    with reporter.progress(f"scoring {count} methods on {request.zoo}", count) as on_method:
        for method in request.methods:
            scores += score(evaluation, method, request.modes)
            on_method(method)
    index = evaluation.zoo.record.index
    return Evaluated(scores, evaluation.base_score.seconds, None if index is None else index.size)
