"""A router that asks a zoo's query index, with features of the wrapped module itself."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.merging.models.adapters import default_neighbours
from flexswitch.merging.models.feature_spec import FROM_FILE, FeatureSpec, parse_feature_spec
from flexswitch.merging.models.hidden_states import in_short_parts, layer_means, pooled_mean
from flexswitch.merging.models.padding_side import right_padded
from flexswitch.merging.routing.features import computing_in
from flexswitch.merging.routing.mixing import mixed, snap
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.routing.query_set import QuerySet, check_covers, read_query_set
from flexswitch.merging.routing.text_shape import with_shapes
from flexswitch.merging.routing.voting_options import VotingOptions

# Calls a module for a batch under the average of the named tasks.
Averaged = Callable[[Any, list[str], Callable[[nn.Module], Tensor]], Tensor]


class ZooRouter:
    """Returns weights (row, task) for a batch, in the order of the zoo's tasks.

    Features of layer N run the first N layers of the base, once for the whole batch. The index is read at
    once, so that a later change of the zoo does not reach the router, and checked on the first call, as
    weights that the caller gives need none.
    """

    def __init__(
        self, module: nn.Module, zoo: Zoo, routing: VotingOptions | None, averaged: Averaged
    ) -> None:
        self._module, self._zoo, self._averaged = module, zoo, averaged
        self._voting = routing or VotingOptions()
        self._stored = read_query_set(zoo)

    @cached_property
    def _query_set(self) -> QuerySet:
        """Raises: InputError where the zoo's index lacks a task, or holds features of a file."""
        query_set = self._stored
        check_covers(query_set, list(self._zoo), self._zoo.path)
        if query_set.header.features == FROM_FILE:
            raise InputError(
                f"{self._zoo.path}: was indexed with features of a file, which a batch does not have; "
                "give weights=, or a router when wrapping the module"
            )
        return query_set

    @cached_property
    def _index(self) -> QueryIndex:
        neighbours = self._voting.neighbours or default_neighbours(self._zoo.record.adapter)
        return QueryIndex(self._query_set, neighbours, "cpu", self._voting.vote)

    def __call__(self, batch: Any, texts: Sequence[str] | None = None) -> Tensor:
        """Returns weights (row, task) float32 on the CPU.

        texts: the text of each row. Raises: InputError where the index is unusable, or has features of the
        texts' shape and the texts are missing or too few.
        """
        header = self._query_set.header
        spec = parse_feature_spec(header.features)
        given = batch if isinstance(batch, Mapping) else {_main_input(self._module): batch}
        given = right_padded(dict(given))
        first = next(iter(given.values()))
        shaped = _checked(texts, len(first), header.features) if spec.shaped else None
        with torch.no_grad(), computing_in(header.dtype, str(first.device)):
            if spec.averaged:
                tasks = header.averaged or []
                features = self._averaged(batch, tasks, lambda module: _means(module, given, spec))
            else:
                features = in_short_parts(given, lambda part: _means(self._module, part, spec))
        if shaped is not None:
            features = with_shapes(features, shaped, spec.parts - 1)
        found = self._index.weights(features.float())
        shares = mixed(snap(np.asarray(found.weights), self._voting.snap), self._voting.mix)
        return torch.from_numpy(shares[:, [self._index.tasks.index(task) for task in self._zoo]])


def _checked(texts: Sequence[str] | None, rows: int, features: str) -> Sequence[str]:
    if texts is None:
        raise InputError(
            f"the zoo was indexed with features '{features}', which include the texts' shape; "
            "give texts=, one for each row, or weights="
        )
    if len(texts) != rows:
        raise InputError(f"texts= holds {len(texts)} texts, expected {rows}, one for each row")
    return texts


def _means(module: nn.Module, batch: Mapping[str, Tensor], spec: FeatureSpec) -> Tensor:
    given = dict(batch)
    return layer_means(module, given, spec.layers) if spec.layers else pooled_mean(module, given)


def _main_input(module: nn.Module) -> str:
    """Returns the name of a transformers model's first input."""
    return str(getattr(module, "main_input_name", "input_ids"))
