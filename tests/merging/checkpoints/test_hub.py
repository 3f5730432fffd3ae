"""Checkpoints from the hub: huggingface_hub itself against a small hub on this machine."""

import errno
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.errors import RepositoryNotFoundError
from support.hub_server import EXPIRED_TOKEN, HubServer

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.hub import download_checkpoint

TEXTS = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "vocab.txt": b"a\nb\n",
    "chat_template.jinja": b"{{ x }}",
}
WEIGHTS = bytes(range(256)) * 64
REPOSITORIES = {
    "org/model": {
        **TEXTS,
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"pickle",
        "tf_model.h5": b"other",
        "flax_model.msgpack": b"other",
        "rust_model.ot": b"other",
        "onnx/model.safetensors": b"other",
        "onnx/config.json": b"other",
        "modeling_own.py": b"code",
        "README.md": b"# card",
    },
    "org/model@v1": {"config.json": b'{"version": 1}', "model.safetensors": b"first"},
    "org/model@refs/pr/1": {"config.json": b'{"version": 2}', "model.safetensors": b"asked for"},
    "org/pickled": {
        "config.json": b"{}",
        "pytorch_model.bin.index.json": b"{}",
        "pytorch_model-00001-of-00002.bin": b"one",
        "pytorch_model-00002-of-00002.bin": b"two",
        "training_args.bin": b"other",
    },
    "org/other": {"config.json": b"{}", "tf_model.h5": b"other"},
    "org/odd": {"model[1].safetensors": b"odd"},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on this machine, an empty cache and no token."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # huggingface_hub has read these from the environment when it was imported
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # its first call asks huggingface.co
    with HubServer({key: dict(files) for key, files in REPOSITORIES.items()}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        close_session()  # it keeps the proxies it was opened with
        yield server
        close_session()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failure(hub_id: str) -> str:
    with pytest.raises(InputError) as caught:
        download_checkpoint(hub_id)
    assert caught.value.__cause__ is not None
    return str(caught.value)


def test_only_the_texts_and_safetensors_of_a_model_are_fetched(
    hub: HubServer, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = download_checkpoint("org/model")
    assert contents(folder) == {**TEXTS, "model.safetensors": WEIGHTS}
    assert folder.name == hub.commit("org/model")
    assert capfd.readouterr() == ("", "")


def test_pickled_weights_are_fetched_where_there_are_no_safetensors(hub: HubServer) -> None:
    expected = {
        path: data for path, data in REPOSITORIES["org/pickled"].items() if path != "training_args.bin"
    }
    assert contents(download_checkpoint("org/pickled")) == expected


def test_names_with_pattern_characters_are_fetched_literally(hub: HubServer) -> None:
    assert contents(download_checkpoint("org/odd")) == REPOSITORIES["org/odd"]


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1"])
def test_a_revision_is_honoured(hub: HubServer, revision: str) -> None:
    assert contents(download_checkpoint(f"org/model@{revision}")) == REPOSITORIES[f"org/model@{revision}"]


def test_a_commit_is_a_revision(hub: HubServer) -> None:
    folder = download_checkpoint(f"org/model@{hub.commit('org/model@v1')}")
    assert contents(folder) == REPOSITORIES["org/model@v1"]


def test_cached_files_are_not_fetched_again(hub: HubServer) -> None:
    folder = download_checkpoint("org/model")
    hub.requests.clear()
    assert download_checkpoint("org/model") == folder
    assert [request for request in hub.requests if "/resolve/" in request] == []


def test_a_branch_that_moved_is_fetched_again(hub: HubServer) -> None:
    download_checkpoint("org/model")
    hub.repositories["org/model"]["model.safetensors"] = b"retrained"
    assert contents(download_checkpoint("org/model"))["model.safetensors"] == b"retrained"


def test_a_branch_that_moves_during_the_download_is_an_input_error(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = hub.find

    def push_after_the_listing(repo: str, revision: str) -> str | None:
        if len(hub.requests) == 2:
            hub.repositories["org/model"]["model.safetensors"] = b"retrained"
        return find(repo, revision)

    monkeypatch.setattr(hub, "find", push_after_the_listing)
    with pytest.raises(InputError) as caught:
        download_checkpoint("org/model")
    expected = f"'org/model' changed at {hub.url} after it was listed; run the command again"
    assert str(caught.value) == expected


def test_offline_mode_uses_the_cache(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [download_checkpoint(hub_id) for hub_id in ("org/model", "org/model@v1")]
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [download_checkpoint(hub_id) for hub_id in ("org/model", "org/model@v1")] == folders
    assert hub.requests == []


def test_offline_mode_without_a_copy_is_an_input_error(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert failure("org/model") == (
        "offline mode is on and the cache has no copy of 'org/model' at revision 'main': "
        "unset HF_HUB_OFFLINE and run the command again"
    )


def test_a_missing_repository_is_an_input_error(hub: HubServer) -> None:
    with pytest.raises(InputError) as caught:
        download_checkpoint("org/modle@v1")
    assert str(caught.value) == (
        f"no repository 'org/modle' at {hub.url}: check the spelling, or if it is private set HF_TOKEN"
    )
    assert isinstance(caught.value.__cause__, RepositoryNotFoundError)


def test_an_unknown_revision_is_an_input_error(hub: HubServer) -> None:
    assert failure("org/model@v9") == (
        f"repository 'org/model' at {hub.url} has no revision 'v9': "
        "name one of its branches, tags or commits, or only 'org/model' for the main branch"
    )


@pytest.mark.parametrize(
    ("token", "found"), [(None, "no token was sent"), ("hf_valid", "the token sent has no access")]
)
def test_a_gated_repository_is_an_input_error(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None, found: str
) -> None:
    hub.gated.add("org/model")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert failure("org/model") == (
        f"'org/model' is gated and {found}: ask for access at {hub.url}/org/model and set HF_TOKEN"
    )


def test_an_expired_token_is_an_input_error(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", EXPIRED_TOKEN)
    assert failure("org/model") == (
        f"{hub.url} refuses access to 'org/model' "
        "(401 Unauthorized: Invalid credentials in Authorization header): "
        "set HF_TOKEN to a token that may read it"
    )


def test_a_repository_without_weights_is_an_input_error(hub: HubServer) -> None:
    with pytest.raises(InputError) as caught:
        download_checkpoint("org/other")
    assert str(caught.value) == (
        "repository 'org/other' has no weights at its root: expected *.safetensors or pytorch_model*.bin, "
        "found config.json, tf_model.h5; convert its weights to safetensors"
    )


def test_an_interrupted_download_is_an_input_error_and_the_next_completes_it(
    hub: HubServer, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.reset.add("model.safetensors")
    assert failure("org/model") == (
        f"the download of 'org/model' from {hub.url} broke off ([Errno {errno.ECONNRESET}] "
        "Connection reset by peer); run the command again, finished files are kept"
    )
    assert capfd.readouterr() == ("", "")
    hub.requests.clear()
    assert contents(download_checkpoint("org/model")) == {**TEXTS, "model.safetensors": WEIGHTS}
    fetched = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert fetched == [f"GET /org/model/resolve/{hub.commit('org/model')}/model.safetensors"]


def test_a_download_that_ends_early_is_resumed_by_huggingface_hub_itself(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # what is resumed: whole chunks
    hub.cut.add("model.safetensors")
    assert contents(download_checkpoint("org/model"))["model.safetensors"] == WEIGHTS
    assert any(request.endswith(f"/model.safetensors bytes={len(WEIGHTS) // 2}-") for request in hub.requests)


def test_an_unreachable_hub_is_an_input_error(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_at_once:
        url = f"http://127.0.0.1:{closed_at_once.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    assert failure("org/model") == (
        f"the download of 'org/model' from {url} broke off ([Errno {errno.ECONNREFUSED}] "
        "Connection refused); run the command again, finished files are kept"
    )


def test_a_hub_that_does_not_answer_is_an_input_error(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert failure("org/model") == (
            f"the download of 'org/model' from {url} broke off (timed out); "
            "run the command again, finished files are kept"
        )


def test_a_full_disk_keeps_its_own_error(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(OSError, match="No space left on device") as caught:
        download_checkpoint("org/model")
    assert caught.value.errno == errno.ENOSPC


def test_progress_bars_show_on_a_terminal(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    download_checkpoint("org/model")
    assert "Fetching 5 files: 100%" in terminal.getvalue()


def test_the_environment_of_a_fresh_process_decides_hub_and_cache(hub: HubServer, tmp_path: Path) -> None:
    program = "from flexswitch.merging.checkpoints.hub import *; print(download_checkpoint('org/model@v1'))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url + "/", "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    folder = tmp_path / "home/hub/models--org--model/snapshots" / hub.commit("org/model@v1")
    assert (done.stdout, done.stderr) == (f"{folder}\n", "")
    assert contents(folder) == REPOSITORIES["org/model@v1"]


def test_the_library_is_imported_only_to_download() -> None:
    program = "import sys, flexswitch.merging.checkpoints.hub; print('huggingface_hub' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
