"""Checkpoints on the Hugging Face hub: which files make a checkpoint, why a download failed.

Fetching, caching and retrying are huggingface_hub's.
"""

import functools
import glob
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any, TypeVar

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.hub_id import HUB_ID

Answer = TypeVar("Answer")

TEXTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "vocab.bpe", "bpe.codes")
SAFETENSORS = ("*.safetensors",)
# The modules of a sentence-transformers model.
_MODULE = re.compile(r"\d+_\w+/(?:config\.json|model\.safetensors|pytorch_model\.bin)", re.ASCII)
BINARIES = ("pytorch_model*.bin", "adapter_model*.bin")


def checkpoint_files(names: Iterable[str]) -> list[str]:
    """Returns those files of a repository that a checkpoint needs; none if it has no weights at its root.

    Never code, never a second format. Mistral's `consolidated*` repeat the other weights and are left out.
    """
    names = list(names)
    root = [name for name in names if "/" not in name]
    modules = [name for name in names if _MODULE.fullmatch(name)] if "modules.json" in root else []
    first_copy = [name for name in root if not name.startswith("consolidated")]
    for candidates, patterns in ((first_copy, SAFETENSORS), (root, SAFETENSORS), (root, BINARIES)):
        if weights := _matching(candidates, patterns):
            index = PurePath(weights[0]).suffix + ".index.json"
            texts = _matching(candidates, TEXTS)
            texts = [name for name in texts if name.endswith(index) or ".index." not in name]
            return weights + texts + modules
    return []


def download_checkpoint(hub_id: str) -> Path:
    """Returns the local directory with config, tokenizer and weights of `org/name` or `org/name@revision`.

    All files are of one commit; those in the cache are not fetched again. Offline mode uses only the cache.

    Raises:
        InputError: repository, revision, access or weights are missing, or the download broke off.
        OSError: the cache cannot be written: disk full, not permitted.
    """
    return ask_hub(hub_id, _download)


def cached_checkpoint(repo: str, commit: str) -> Path | None:
    """Returns the cache's copy of a repository at a commit, None if it has none; never asks the hub."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, revision=commit, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


def resolve_commit(hub_id: str) -> str:
    """Returns the commit that `org/name` or `org/name@revision` stands for now; offline, that of the cache.

    Raises: InputError as `download_checkpoint` does.
    """
    return ask_hub(hub_id, _commit)


def _commit(repo: str, revision: str | None, endpoint: str) -> str:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        api = HfApi(endpoint=endpoint)
        info = api.model_info(repo, revision=revision, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    except OfflineModeIsEnabled:
        options: dict[str, Any] = {"revision": revision, "endpoint": endpoint, "allow_patterns": []}
        return Path(snapshot_download(repo, local_files_only=True, **options)).name
    return str(info.sha)


def ask_hub(hub_id: str, ask: Callable[[str, str | None, str], Answer], doing: str = "download") -> Answer:
    """Returns what the hub answers on a repository and revision. Raises: InputError, OSError."""
    from huggingface_hub import constants

    if (match := HUB_ID.fullmatch(hub_id)) is None:
        raise InputError(f"'{hub_id}' is not a hub id: expected org/name or org/name@revision")
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        with _warnings_silenced():
            return ask(match["repo"], match["revision"], endpoint)
    except InputError:
        raise
    except Exception as error:  # those of huggingface_hub, httpx and hf_xet share no other ancestor
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the hub's
        reason = _explain(error, match["repo"], match["revision"] or "main", endpoint, doing)
        raise InputError(reason) from error


def _download(repo: str, revision: str | None, endpoint: str) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils.tqdm import tqdm

    class TerminalBar(tqdm):
        __init__ = functools.partialmethod(tqdm.__init__, disable=None)  # None: only on a terminal

    fetch = functools.partial(snapshot_download, repo, revision=revision, endpoint=endpoint)
    try:
        api = HfApi(endpoint=endpoint)
        info = api.model_info(repo, revision=revision, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    except OfflineModeIsEnabled as error:
        folder = Path(fetch(local_files_only=True, allow_patterns=[]))
        if checkpoint_files(os.listdir(folder)):
            return folder
        raise LocalEntryNotFoundError(f"{folder} holds no weights") from error
    names = sorted(file.rfilename for file in info.siblings or [])
    wanted = checkpoint_files(names)
    if not wanted:
        found = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise InputError(
            f"repository '{repo}' has no weights at its root: expected *.safetensors or pytorch_model*.bin, "
            f"found {found or 'no files'}; convert its weights to safetensors"
        )
    # Fetched by the name of the revision, not by its commit: the cache then knows the name when offline.
    folder = Path(fetch(allow_patterns=[glob.escape(name) for name in wanted], tqdm_class=TerminalBar))
    if folder.name != info.sha:
        raise InputError(f"'{repo}' changed at {endpoint} after it was listed; run the command again")
    return folder


def _explain(error: BaseException, repo: str, revision: str, endpoint: str, doing: str) -> str:
    from huggingface_hub import errors

    while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status, reason = 0, str(error).strip() or type(error).__name__
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        reason = ": ".join(filter(None, (f"{status} {error.response.reason_phrase}", error.server_message)))
    reason = reason.splitlines()[0]
    match error:
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            found = f"offline mode is on and the cache has no copy of '{repo}' at revision '{revision}'"
            return f"{found}: unset HF_HUB_OFFLINE and run the command again"
        case errors.GatedRepoError():
            found = "no token was sent" if status == 401 else "the token sent has no access"
            return f"'{repo}' is gated and {found}: ask for access at {endpoint}/{repo} and set HF_TOKEN"
        case errors.RevisionNotFoundError():
            found = f"repository '{repo}' at {endpoint} has no revision '{revision}'"
            return f"{found}: name one of its branches, tags or commits, or only '{repo}' for the main branch"
        case errors.RepositoryNotFoundError():
            found = f"no repository '{repo}' at {endpoint}"
            return f"{found}: check the spelling, or if it is private set HF_TOKEN"
    if status in (401, 403):
        return f"{endpoint} refuses access to '{repo}' ({reason}): set HF_TOKEN to a token that may read it"
    found = (
        f"the {doing} of '{repo}' {'from' if doing == 'download' else 'to'} {endpoint} broke off ({reason})"
    )
    return f"{found}; run the command again, finished files are kept"


@contextmanager
def _warnings_silenced() -> Iterator[None]:
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity  # the import sets the level

    level = get_verbosity()
    set_verbosity(logging.ERROR if level == logging.WARNING else level)  # HF_HUB_VERBOSITY=debug stays
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        set_verbosity(level)


def _matching(names: Iterable[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
