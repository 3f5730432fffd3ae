"""Builds a zoo's query index, or adds tasks to it."""

from pathlib import Path
from typing import Literal, NamedTuple

from flexswitch.codecs.format.zoo import IndexRecord, open_zoo
from flexswitch.merging.commands.arguments import check_choice
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.routing.features import FeatureDtype
from flexswitch.merging.routing.index_build import Settings
from flexswitch.merging.routing.indexing import Request, add_to_index, index_zoo
from flexswitch.merging.routing.projection import Normalisation

Metric = Literal["learned", "euclidean"]


class Indexed(NamedTuple):
    """The index's record, the names of the tasks that were added to it, and what the user should know."""

    record: IndexRecord
    added: list[str]
    notes: list[str]


def index(
    zoo: str | Path,
    *,
    base: str | Path,
    exemplars: str | Path,
    add: bool = False,
    per_task: int = 100,
    features: str | None = None,
    feature_dtype: FeatureDtype = "float32",
    normalise: Normalisation = "centred",
    metric: Metric = "learned",
    rank: int = 32,
    seed: int = 0,
    adapter: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Indexed:
    """Stores exemplars of every task in a zoo, or with `add` of the tasks that its index lacks.

    features: a feature spec or a feature file; None is "auto". With `add` the settings are the index's own.
    Raises: FlexswitchError.
    """
    check_choice("--metric", metric, Metric)
    check_choice("--normalise", normalise, Normalisation)
    check_choice("--feature-dtype", feature_dtype, FeatureDtype)
    path = Path(zoo)
    settings = Settings(per_task, seed, normalise, rank if metric == "learned" else None)
    request = Request(
        path, str(base), Path(exemplars), features or "auto", feature_dtype, settings, adapter, device
    )
    doing = "adding to" if add else "making"
    with reporter.progress(f"{doing} the index of {path}", len(open_zoo(path))) as on_task:
        if add:
            record, added, notes = add_to_index(request, Path(features) if features else None, on_task)
        else:
            (record, notes), added = index_zoo(request, overwrite, on_task), []
    for note in notes:
        reporter.note(note)
    return Indexed(record, added, notes)
