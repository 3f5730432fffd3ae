"""Indexes a zoo: opens and checks the inputs, then builds the query set or adds to it."""

from collections.abc import Callable
from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.index_record import IndexRecord
from flexswitch.codecs.format.zoo import Zoo, open_zoo
from flexswitch.codecs.format.zoo_writer import NO_LIMIT, Wait, ZooWriter, zoo_writer
from flexswitch.merging.models.examples import ignored_files
from flexswitch.merging.models.feature_spec import FROM_FILE, is_file
from flexswitch.merging.models.runner import checked_runner
from flexswitch.merging.routing.features import (
    FeatureSource,
    FileFeatures,
    feature_source,
    stored_source,
)
from flexswitch.merging.routing.index_build import build_index, exemplars_of, extend_index
from flexswitch.merging.routing.index_options import IndexOptions
from flexswitch.merging.routing.query_set import read_query_set


def index_zoo(
    path: Path,
    base: str,
    exemplars: Path,
    options: IndexOptions,
    overwrite: bool,
    on_task: Callable[[str], None],
    wait: Wait = NO_LIMIT,
) -> tuple[IndexRecord, list[str]]:
    """Builds a zoo's query index; returns its record and notes for the user.

    No other process changes the zoo meanwhile. Raises: InputError, UsageError.
    """
    with zoo_writer(path, wait) as writer:
        return _index(open_zoo(path), base, exemplars, options, overwrite, on_task, writer)


def _index(
    zoo: Zoo,
    base: str,
    exemplars: Path,
    options: IndexOptions,
    overwrite: bool,
    on_task: Callable[[str], None],
    writer: ZooWriter,
) -> tuple[IndexRecord, list[str]]:
    if zoo.record.index is not None and not overwrite:
        raise InputError(
            f"{zoo.path}: has a query index already; --overwrite replaces it, --add adds the tasks it lacks"
        )
    examples = exemplars_of(zoo, exemplars, options.per_task, options.seed)
    open_runner = checked_runner(
        zoo, base, options.adapter, options.device, options.dtype, options.max_length
    )
    source: FeatureSource
    if is_file(options.features):
        source = FileFeatures(Path(options.features))
    else:
        source = feature_source(options.features, open_runner(), zoo)
    record, notes = build_index(zoo, examples, options, source, on_task, writer)
    return record, ignored_files(exemplars, "train", zoo) + notes


def add_to_index(
    path: Path,
    base: str,
    exemplars: Path,
    options: IndexOptions,
    file: Path | None,
    on_task: Callable[[str], None],
    wait: Wait = NO_LIMIT,
) -> tuple[IndexRecord, list[str], list[str]]:
    """Adds the tasks that a zoo's query index lacks; returns its record, their names, and notes.

    The index's own settings replace all options but the adapter, the device and max_length. file: the feature
    file, if the zoo was indexed with one. No other process changes the zoo meanwhile. Raises: InputError.
    """
    with zoo_writer(path, wait) as writer:
        return _add(open_zoo(path), base, exemplars, options, file, on_task, writer)


def _add(
    zoo: Zoo,
    base: str,
    exemplars: Path,
    options: IndexOptions,
    file: Path | None,
    on_task: Callable[[str], None],
    writer: ZooWriter,
) -> tuple[IndexRecord, list[str], list[str]]:
    query_set = read_query_set(zoo)
    lacking = [task for task in zoo if task not in query_set.header.tasks]
    if not lacking:
        raise InputError(f"{zoo.path}: the query index has all of its tasks; there is nothing to add")
    header = query_set.header
    examples = exemplars_of(zoo, exemplars, header.per_task, header.seed, lacking)
    open_runner = checked_runner(
        zoo, base, options.adapter, options.device, options.dtype, options.max_length
    )
    if query_set.header.features == FROM_FILE and file is not None:
        source: FeatureSource = FileFeatures(file)
    else:
        source = stored_source(query_set.header, open_runner(), zoo, file)
    record, notes = extend_index(zoo, query_set, examples, source, on_task, writer)
    return record, lacking, ignored_files(exemplars, "train", zoo) + notes
