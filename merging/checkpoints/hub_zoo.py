"""Zoos on the Hugging Face hub: fetched whole, and sent in one commit."""

import glob
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.hub_id import is_hub_id
from flexswitch.codecs.format.zoo import ZOO_FILE
from flexswitch.merging.checkpoints.hub import ask_hub

_ZOO_FILES = (ZOO_FILE, "tasks/*.fsw", "shared/*.fsw", "index/*.safetensors")


def zoo_path(source: str | Path) -> Path:
    """Returns the folder of a zoo; one of the hub, `org/name[@revision]`, is fetched.

    Raises: InputError if it is neither a path nor a zoo on the hub.
    """
    path = Path(source)
    if os.path.lexists(path) or not is_hub_id(str(source)):
        return path
    try:
        found = hub_zoo(str(source))
    except InputError as reason:
        raise InputError(f"{source}: no such file or folder; from the hub: {reason}") from reason
    if found is None:
        raise InputError(f"{source}: the repository on the hub holds no {ZOO_FILE}, so it is no zoo")
    return found


def hub_zoo(hub_id: str) -> Path | None:
    """Returns the folder of a zoo of the hub, with all of its files; None where the repository holds none."""
    folder = ask_hub(hub_id, _download)
    return folder if (folder / ZOO_FILE).is_file() else None


def send_zoo(repository: str, files: Mapping[str, Path | bytes], message: str) -> str:
    """Makes a repository's files those given, in one commit, and returns the commit.

    Files of a zoo that the repository has and `files` lacks are removed; others stay. Raises: InputError.
    """

    def send(repo: str, revision: str | None, endpoint: str) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi(endpoint=endpoint)
        api.create_repo(repo, exist_ok=True)
        present = [name for name in api.list_repo_files(repo) if _is_of_zoo(name)]
        additions = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in sorted(files.items())
        ]
        removals = [CommitOperationDelete(name) for name in present if name not in files]
        info = api.create_commit(repo, [*additions, *removals], commit_message=message)
        return str(info.oid)

    return ask_hub(repository, send, "upload")


def _download(repo: str, revision: str | None, endpoint: str) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        api = HfApi(endpoint=endpoint)
        info = api.model_info(repo, revision=revision, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    except OfflineModeIsEnabled:
        folder = snapshot_download(
            repo, revision=revision, endpoint=endpoint, local_files_only=True, allow_patterns=[]
        )
        return Path(folder)
    names = [file.rfilename for file in info.siblings or []]
    wanted = [glob.escape(name) for name in _zoo_files(names)]
    return Path(snapshot_download(repo, revision=revision, endpoint=endpoint, allow_patterns=wanted))


def _zoo_files(names: Iterable[str]) -> list[str]:
    """Returns the files that make a zoo; none where there is no zoo.json."""
    found = [name for name in names if _is_of_zoo(name)]
    return found if ZOO_FILE in found else []


def _is_of_zoo(name: str) -> bool:
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in _ZOO_FILES)
