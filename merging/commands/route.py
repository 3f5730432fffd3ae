"""Routes the samples of a file to a zoo's tasks."""

from pathlib import Path
from typing import NamedTuple

from flexswitch.codecs.format.zoo import Zoo, read_zoo
from flexswitch.merging.checkpoints.hub_zoo import zoo_path
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.models.device import check_device
from flexswitch.merging.models.examples import Examples
from flexswitch.merging.models.runner import checked_runner
from flexswitch.merging.routing.query_index import QueryIndex, RoutingResult
from flexswitch.merging.routing.router import Router, chunk_count, open_router, read_samples, route_file
from flexswitch.merging.routing.voting_options import VotingOptions


class RoutedFile(NamedTuple):
    """The weights of a file's samples, and the index that they come from."""

    result: RoutingResult
    query_index: QueryIndex


def route(
    zoo: str | Path,
    *,
    base: str | Path,
    samples: str | Path,
    voting: VotingOptions | None = None,
    features: Path | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    adapter: str | None = None,
    device: str = "cpu",
    reporter: Reporter = SILENT,
) -> RoutedFile:
    """Returns the weights of a file's samples.

    features: the feature file, if the zoo was indexed with one. max_length: as for `get_adapter`.
    Raises: FlexswitchError.
    """
    check_device(device)
    path = Path(samples)

    def opened(zoo: Zoo) -> tuple[Router, Examples]:
        zoo.index_file()
        examples = read_samples(path, limit)
        runner = checked_runner(zoo, base, adapter, device, max_length=max_length)()
        return open_router(zoo, runner, features, voting or VotingOptions()), examples

    router, examples = read_zoo(zoo_path(zoo), opened)
    with reporter.progress(f"routing {len(examples):,} samples of {path}", chunk_count(examples)) as on_chunk:
        result = route_file(router, path, examples, on_chunk)
    if router.index.recall < 1:
        reporter.note(
            f"of that many exemplars the search finds {100 * router.index.recall:.1f} % of the nearest, "
            "measured on the exemplars"
        )
    return RoutedFile(result, router.index)
