"""Routes test samples by exemplars, under any combination of the ingredients."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.format.index_record import RoutingAccuracy
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.examples import Examples, draw, read_examples, task_file
from flexswitch.merging.models.feature_spec import layers_spec, parse_feature_spec
from flexswitch.merging.models.hidden_states import layer_count
from flexswitch.merging.models.runner import FeatureDtype
from flexswitch.merging.routing.confusion import confusion
from flexswitch.merging.routing.features import ModelFeatures
from flexswitch.merging.routing.metric import learn_metric
from flexswitch.merging.routing.projection import Normalisation, Projection, fit_normalisation
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.routing.query_set import QuerySet, QuerySetHeader, as_stored

# (task, how many examples it has) → the rows that are taken
Rows = Callable[[str, int], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class States:
    """What features are made of: the texts' shapes, then the means of every layer, the embeddings first.

    parts: (sample, 1 + layer, width) float32; ids: (sample,) tasks.
    """

    parts: Tensor
    ids: NDArray[np.int32]

    @property
    def shapes(self) -> Tensor:
        """The texts' shapes as one part, (sample, 1, width)."""
        return self.parts[:, :1]

    @property
    def layers(self) -> Tensor:
        """The layers' means, (sample, layer, width)."""
        return self.parts[:, 1:]

    def features(self, recipe: "Recipe") -> Tensor:
        """Returns the features of a recipe, (sample, width)."""
        return self.parts[:, [*([0] if recipe.shaped else []), *(1 + n for n in recipe.layers)]].flatten(1)

    def without(self, task: int | None) -> "States":
        """Returns the samples of the other tasks."""
        rows = np.flatnonzero(self.ids != task)
        return States(self.parts[torch.from_numpy(rows)], self.ids[rows])


@dataclass(frozen=True)
class Recipe:
    """One combination of ingredients; rank: of the learned metric, None for the Euclidean one."""

    layers: tuple[int, ...]
    normalise: Normalisation = "centred"
    rank: int | None = 32
    vote: str = "uniform"
    neighbours: int = 10
    shaped: bool = False

    @property
    def spec(self) -> str:
        """The feature spec."""
        return layers_spec(self.layers, self.shaped)


class Model:
    """The base as a source of every layer's features, kept in files of `cache`."""

    def __init__(self, base: Path, data: Path, tasks: list[str], cache: Path) -> None:
        self.adapter = get_adapter(open_checkpoint(str(base)), "hf-encoder")
        self.encoder = self.adapter.encoder()
        self.last = layer_count(self.encoder)
        self._data, self._tasks, self._cache = data, tasks, cache

    def source(self, spec: str, dtype: FeatureDtype = "float32") -> ModelFeatures:
        """Returns the base's features for a spec."""
        return ModelFeatures(spec, self.adapter, self.encoder, "cpu", dtype)

    def examples(self, task: str, split: str) -> Examples:
        """Returns a task's texts."""
        return read_examples(task_file(self._data, task, split), labelled=False)

    def exemplar_texts(self, task: str, per_task: int, seed: int) -> list[str]:
        """Returns the texts of a task's exemplars."""
        inputs = self.examples(task, "train").inputs
        return [str(inputs[row]) for row in draw(len(inputs), per_task, seed, task)]

    def test(self, dtype: FeatureDtype = "float32") -> States:
        """Returns the states of all test texts."""
        return self._states(f"test-{dtype}", "test", lambda task, count: np.arange(count), dtype)

    def exemplars(self, per_task: int, seed: int, dtype: FeatureDtype = "float32") -> States:
        """Returns the states of the exemplars that `flexswitch index` draws."""
        name = f"train-{per_task}-{seed}-{dtype}"
        return self._states(name, "train", lambda task, count: draw(count, per_task, seed, task), dtype)

    def _states(self, name: str, split: str, rows_of: Rows, dtype: FeatureDtype) -> States:
        kept = self._cache / f"{name}.npz"
        if not kept.exists():
            source = self.source(layers_spec(tuple(range(self.last + 1)), True), dtype)
            found, ids = [], []
            for number, task in enumerate(self._tasks):
                print(f"features of {task}, {name}", flush=True)
                examples = self.examples(task, split)
                rows = rows_of(task, len(examples))
                if split == "train":
                    features = source.exemplars(task, examples, rows)
                else:
                    features = source.rows(task, split, examples, rows)
                found.append(features.reshape(len(rows), self.last + 2, -1).numpy())
                ids.append(np.full(len(rows), number, np.int32))
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez(kept, parts=np.concatenate(found), ids=np.concatenate(ids))
        arrays = np.load(kept)
        return States(torch.from_numpy(arrays["parts"]), arrays["ids"])


def route(recipe: Recipe, exemplars: States, test: States, tasks: list[str]) -> NDArray[np.int64]:
    """Returns how many test samples of each task were routed to each, (task, routed task)."""
    return confusion(test.ids, leading(recipe, exemplars, test, tasks), len(tasks))


def leading(recipe: Recipe, exemplars: States, test: States, tasks: list[str]) -> NDArray[np.int64]:
    """Returns the task that each test sample is routed to, (sample,)."""
    query_set, _ = query_set_of(recipe, exemplars, tasks)
    index = QueryIndex(query_set, recipe.neighbours, vote=recipe.vote)
    routed = index.weights(test.features(recipe))
    found: NDArray[np.int64] = routed.leading.numpy()
    return found


def query_set_of(
    recipe: Recipe, exemplars: States, tasks: list[str]
) -> tuple[QuerySet, RoutingAccuracy | None]:
    """Returns the query set that `flexswitch index` stores, and how well exemplars are routed by others.

    What was learned is remembered: votes need no other metric.
    """
    key = (recipe.spec, recipe.normalise, recipe.rank, float(exemplars.parts.sum()))
    if key not in _KNOWN:
        _KNOWN[key] = _made(recipe, exemplars, tasks)
    return _KNOWN[key]


_KNOWN: dict[tuple[object, ...], tuple[QuerySet, RoutingAccuracy | None]] = {}


def _made(recipe: Recipe, exemplars: States, tasks: list[str]) -> tuple[QuerySet, RoutingAccuracy | None]:
    features = exemplars.features(recipe)
    parts = parse_feature_spec(recipe.spec).parts
    projection = fit_normalisation(features.double(), recipe.normalise, parts)
    accuracy = None
    if recipe.rank is not None:
        normalised = features.double() if projection is None else projection.normalised(features.double())
        learned = learn_metric(normalised, exemplars.ids, recipe.rank)
        accuracy = learned.accuracy
        projection = replace(projection or Projection(parts), metric=learned.metric)
    header = QuerySetHeader(tasks=tasks, features=recipe.spec, per_task=1, seed=0)
    if projection is None:
        return QuerySet(header, features.numpy(), exemplars.ids), accuracy
    points = as_stored(projection(features).numpy()).astype(np.float32)
    return QuerySet(header, points, exemplars.ids, projection), accuracy
