"""Gives samples their weights: the features that a zoo was indexed with, and the index that they ask."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.examples import SUFFIXES, Examples, read_examples
from flexswitch.merging.routing.features import FeatureSource, Runner, stored_source
from flexswitch.merging.routing.mixing import mixed, snap
from flexswitch.merging.routing.query_index import QueryIndex, RoutingResult
from flexswitch.merging.routing.query_set import check_covers, read_query_set

_CHUNK = 1024  # samples between two steps of progress


@dataclass(frozen=True)
class Router:
    """A zoo's query index, and where the features of samples come from."""

    index: QueryIndex
    source: FeatureSource


def open_router(
    zoo: Zoo, adapter: Adapter, features: Path | None, neighbours: int | None, vote: str, device: str
) -> Router:
    """Returns what routes to a zoo's tasks, by the features that it was indexed with.

    features: the feature file, where the zoo was indexed with one; neighbours: the adapter's without it.
    Raises: InputError where the zoo has no index of all its tasks, or one of other features.
    """
    query_set = read_query_set(zoo)
    check_covers(query_set, list(zoo), zoo.path)
    source = stored_source(query_set.header, Runner(adapter, device), zoo, features)
    return Router(QueryIndex(query_set, neighbours or adapter.neighbours, device, vote), source)


def route_file(
    router: Router, path: Path, examples: Examples, within: float, mix: str, on_routed: Callable[[str], None]
) -> RoutingResult:
    """Returns what the samples of a file get, their shares snapped within that and mixed by that kind.

    `on_routed` hears after each chunk how many are done. In a feature file the samples' tensor has the name
    of their file without its suffix, and `.test` behind it where that has no split. Raises: InputError.
    """
    task, split = tensor_name(path)
    found = []
    for start in range(0, len(examples), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(examples)))
        found.append(router.index.weights(router.source.rows(task, split, examples, rows)))
        on_routed(f"{rows[-1] + 1:,}")
    routed = RoutingResult(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return routed._replace(weights=torch.from_numpy(mixed(snap(routed.weights.numpy(), within), mix)))


def read_samples(path: Path, limit: int | None) -> Examples:
    """Returns the samples of a file, the first `limit` of them. Raises: InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected samples as one of {', '.join(SUFFIXES)}")
    return read_examples(path, labelled=False).first(limit)


def chunk_count(examples: Examples) -> int:
    """Returns how often `route_file` tells how many samples are done."""
    return -(-len(examples) // _CHUNK)


def tensor_name(path: Path) -> tuple[str, str]:
    """Returns the task and split whose features a file's samples have.

    >>> tensor_name(Path("data/sst2.train.jsonl.gz")), tensor_name(Path("mixed.csv"))
    (('sst2', 'train'), ('mixed', 'test'))
    """
    stem = next((path.name.removesuffix(each) for each in SUFFIXES if path.name.endswith(each)), path.stem)
    task, dot, split = stem.rpartition(".")
    return (task, split) if dot else (stem, "test")
