"""Builds a zoo's query index, or adds tasks to it."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from flexswitch.codecs.format.index_record import IndexRecord
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.codecs.format.zoo_writer import Wait
from flexswitch.merging.commands.arguments import Access, Changed, Input, NotNegative, Positive, checked
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.models.feature_spec import AUTO
from flexswitch.merging.routing.projection import Normalisation

FeatureDtype = Literal["float32", "bfloat16"]
Metric = Literal["learned", "euclidean"]


class Indexed(NamedTuple):
    """The zoo, the index's record, the names of the tasks that were added to it, and notes for the user."""

    zoo: Path
    record: IndexRecord
    added: list[str]
    notes: list[str]


@checked
def index(
    zoo: Changed,
    *,
    base: Input,
    exemplars: Input,
    add: bool = False,
    per_task: Positive = 100,
    features: Annotated[str, Access("reads", suffix=".safetensors")] | None = None,
    feature_dtype: FeatureDtype = "float32",
    normalise: Normalisation = "centred",
    metric: Metric = "learned",
    rank: Positive = 32,
    seed: int = 0,
    max_length: Positive | None = None,
    adapter: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    lock_timeout: NotNegative | None = None,
    reporter: Reporter = SILENT,
) -> Indexed:
    """Stores exemplars of every task in a zoo, or with `add` of the tasks that its index lacks.

    features: a feature spec or a feature file [default: "auto"]. max_length: the number of tokens at which
    texts are cut [default: the model's own]. With `add`, the index's own settings are used. lock_timeout:
    seconds to wait for another writer of the zoo; None waits until it ends.
    Raises: FlexswitchError.
    """
    from flexswitch.merging.routing.index_options import IndexOptions
    from flexswitch.merging.routing.indexing import add_to_index, index_zoo

    options = IndexOptions(
        features or AUTO, feature_dtype, per_task, seed, normalise, metric, rank, adapter, device, max_length
    )
    path, source, folder, wait = Path(zoo), str(base), Path(exemplars), Wait(lock_timeout, reporter.note)
    doing = "adding to" if add else "making"
    with reporter.progress(f"{doing} the index of {path}", len(open_zoo(path))) as on_task:
        if add:
            file = Path(features) if features else None
            record, added, notes = add_to_index(path, source, folder, options, file, on_task, wait)
        else:
            (record, notes), added = index_zoo(path, source, folder, options, overwrite, on_task, wait), []
    for note in notes:
        reporter.note(note)
    return Indexed(path, record, added, notes)
