"""Opens a zoo, of this machine or of the hub."""

from pathlib import Path

from flexswitch.codecs.argument_types import PATH, check_argument, is_path
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.codecs.format.zoo import open_zoo as open_folder
from flexswitch.merging.checkpoints.hub_zoo import zoo_path


def open_zoo(source: str | Path) -> Zoo:
    """Opens a folder, or `org/name[@revision]` of the hub; tasks are checked when they are opened.

    Raises: InputError if there is no zoo; ArtifactError if its `zoo.json` is invalid.
    """
    check_argument("open_zoo", "path", source, is_path(source), PATH)
    return open_folder(zoo_path(source))
