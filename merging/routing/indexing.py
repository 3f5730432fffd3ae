"""Indexes a zoo: opens all that it takes, checks it, and builds the query set or adds to it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import IndexRecord, Zoo, open_zoo
from flexswitch.merging.checkpoints.fingerprint import check_base
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.device import check_device
from flexswitch.merging.models.feature_spec import AUTO, FROM_FILE, is_auto, is_file, parse_feature_spec
from flexswitch.merging.routing.features import (
    FeatureDtype,
    FeatureSource,
    FileFeatures,
    Runner,
    feature_source,
    stored_source,
)
from flexswitch.merging.routing.index_build import Settings, build_index, extend_index, read_exemplars
from flexswitch.merging.routing.query_set import read_query_set


@dataclass(frozen=True)
class Request:
    """What is to be indexed and how; the fields are the options of `flexswitch index`."""

    zoo: Path
    base: str
    exemplars: Path
    features: str = AUTO
    dtype: FeatureDtype = "float32"
    settings: Settings = field(default_factory=Settings)
    adapter: str | None = None
    device: str = "cpu"


def index_zoo(
    request: Request, overwrite: bool, on_task: Callable[[str], None]
) -> tuple[IndexRecord, list[str]]:
    """Builds a zoo's query index; returns its record and what the user should know.

    Raises: InputError, UsageError.
    """
    check_device(request.device)
    if not is_auto(request.features) and not is_file(request.features):
        parse_feature_spec(request.features)
    zoo = open_zoo(request.zoo)
    if zoo.record.index is not None and not overwrite:
        raise InputError(
            f"{zoo.path}: has a query index already; --overwrite replaces it, --add adds the tasks it lacks"
        )
    examples = read_exemplars(zoo, request.exemplars)
    runner = _runner(request, zoo)
    source: FeatureSource
    if is_file(request.features):
        source = FileFeatures(Path(request.features))
    else:
        source = feature_source(request.features, runner(), zoo)
    return build_index(zoo, examples, request.settings, source, on_task, is_auto(request.features))


def add_to_index(
    request: Request, file: Path | None, on_task: Callable[[str], None]
) -> tuple[IndexRecord, list[str], list[str]]:
    """Adds the tasks that a zoo's query index lacks; returns its record, their names, and notes.

    Settings are the index's own; file: features, where they come from one. Raises: InputError.
    """
    check_device(request.device)
    zoo = open_zoo(request.zoo)
    query_set = read_query_set(zoo)
    lacking = [task for task in zoo if task not in query_set.header.tasks]
    if not lacking:
        raise InputError(f"{zoo.path}: the query index has all of its tasks; there is nothing to add")
    examples = read_exemplars(zoo, request.exemplars, lacking)
    runner = _runner(request, zoo)
    if query_set.header.features == FROM_FILE and file is not None:
        source: FeatureSource = FileFeatures(file)
    else:
        source = stored_source(query_set.header, runner(), zoo, file)
    record, notes = extend_index(zoo, query_set, examples, source, on_task)
    return record, lacking, notes


def _runner(request: Request, zoo: Zoo) -> Callable[[], Runner]:
    """Checks the base, and returns a function that makes what runs it: features of a file need none."""
    base = open_checkpoint(request.base)
    check_base(base, zoo.record.base, str(zoo.path))

    def make() -> Runner:
        adapter = get_adapter(base, zoo.record.adapter, request.adapter)
        return Runner(adapter, request.device, request.dtype)

    return make
