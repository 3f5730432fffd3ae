"""Routes samples to a zoo's tasks: computes their features and searches the zoo's query index."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flexswitch.codecs.errors import InputError, not_found
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.merging.models.examples import SUFFIXES, Examples, first, read_examples
from flexswitch.merging.models.runner import Runner
from flexswitch.merging.routing.features import FeatureSource, stored_source
from flexswitch.merging.routing.mixing import mixed, snap
from flexswitch.merging.routing.query_index import QueryIndex, RoutingResult
from flexswitch.merging.routing.query_set import check_covers, read_query_set
from flexswitch.merging.routing.voting_options import VotingOptions

_CHUNK = 1024  # samples between two calls of on_routed


@dataclass(frozen=True)
class Router:
    """A zoo's query index, the source of the samples' features, and the options of the vote."""

    index: QueryIndex
    source: FeatureSource
    voting: VotingOptions


def open_router(zoo: Zoo, runner: Runner, features: Path | None, voting: VotingOptions) -> Router:
    """Returns the router of a zoo, with the features that the zoo was indexed with.

    features: the feature file, if the zoo was indexed with one. Raises: InputError if the zoo's index is
    missing, lacks a task or holds other features.
    """
    query_set = read_query_set(zoo)
    check_covers(query_set, list(zoo), zoo.path)
    source = stored_source(query_set.header, runner, zoo, features)
    index = QueryIndex(query_set, voting.neighbours or runner.adapter.neighbours, runner.device, voting.vote)
    return Router(index, source, voting)


def route_file(
    router: Router, path: Path, examples: Examples, on_routed: Callable[[str], None]
) -> RoutingResult:
    """Returns the routing result of a file's samples, with snapped and mixed weights.

    on_routed: called after each chunk with the number of samples done. In a feature file, the samples' tensor
    has the name of their file without its suffix, followed by `.test` if that name has no split.
    Raises: InputError.
    """
    task, split = tensor_name(path)
    found = []
    for start in range(0, len(examples), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(examples)))
        found.append(router.index.weights(router.source.rows(task, split, examples, rows)))
        on_routed(f"{rows[-1] + 1:,}")
    routed = RoutingResult(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    shares = snap(routed.weights.numpy(), router.voting.snap)
    return routed._replace(weights=torch.from_numpy(mixed(shares, router.voting.mix)))


def read_samples(path: Path, limit: int | None) -> Examples:
    """Returns the first `limit` samples of a file, or all. Raises: InputError."""
    if not path.is_file():
        raise InputError(not_found(path, f"samples as one of {', '.join(SUFFIXES)}"))
    return read_examples(path, False, first(limit))


def chunk_count(examples: Examples) -> int:
    """Returns how often `route_file` calls `on_routed`."""
    return -(-len(examples) // _CHUNK)


def tensor_name(path: Path) -> tuple[str, str]:
    """Returns the task and split whose features a file's samples have.

    >>> tensor_name(Path("data/sst2.train.jsonl.gz")), tensor_name(Path("mixed.csv"))
    (('sst2', 'train'), ('mixed', 'test'))
    """
    stem = next((path.name.removesuffix(each) for each in SUFFIXES if path.name.endswith(each)), path.stem)
    task, dot, split = stem.rpartition(".")
    return (task, split) if dot else (stem, "test")
