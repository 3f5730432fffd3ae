"""An indexed toy zoo and the scores of its methods, for the tests of eval."""

import json
import shutil

from support.tiny_models import (
    Toy,
    text_toy,
)

from flexswitch.merging.evaluation.methods import score
from flexswitch.merging.evaluation.setup import Request, open_evaluation
from flexswitch.merging.routing.index_options import IndexOptions
from flexswitch.merging.routing.indexing import index_zoo

ALL = ("base", "individual", "average", "task-arithmetic", "t-switch", "auto-switch")
MODES = ("per-sample", "batch-mean", "oracle")
NEIGHBOURS = 5


def index(toy, features="pooled", per_task=12):
    options = IndexOptions(str(features), per_task=per_task, normalise="none", metric="euclidean")
    index_zoo(toy.zoo, str(toy.base), toy.data, options, True, lambda task: None)


def request(toy, **changes):
    return Request(toy.zoo, str(toy.base), toy.data, **changes)


def scores_of(toy, methods, modes=MODES, **changes):
    """Returns the scores by method."""
    evaluation = open_evaluation(request(toy, methods=methods, modes=modes, **changes))
    rows = [row for method in methods for row in score(evaluation, method, modes)]
    return {row.method: row for row in rows}


def accuracies(rows):
    return {name: row.values for name, row in rows.items()}


def indexed_toy(folder):
    toy = text_toy(folder)
    index(toy)
    return toy


def copy_of(toy, folder):
    """Returns the toy with copies of its zoo and data, which a test may change."""
    zoo = shutil.copytree(toy.zoo, folder / "zoo")
    return Toy(toy.base, toy.finetuned, zoo, shutil.copytree(toy.data, folder / "data"))


def examples_of(toy, task):
    lines = (toy.data / f"{task}.test.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [record["text"] for record in records], [record["label"] for record in records]


def percent(answers, labels):
    return 100 * sum(one == two for one, two in zip(answers, labels, strict=True)) / len(labels)
