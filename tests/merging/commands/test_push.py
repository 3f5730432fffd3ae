"""Zoos on the hub: sent in one commit without anything else, and opened by their id wherever a path would do."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants
from support.hub_server import HubServer

import flexswitch as library
from flexswitch.merging.commands.push import model_card


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty hub on this machine, an empty cache and a token."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with HubServer({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        close_session()
        yield server
        close_session()


def zoo_files(folder: Path) -> dict[str, bytes]:
    """Returns a zoo's files, without hidden ones."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_zoo_is_sent_in_one_commit_with_a_card_and_nothing_else(zoo, hub, flexswitch):
    (zoo / "zoo" / "notes.txt").write_text("mine")
    (zoo / "zoo" / "tasks" / "stray.fsw").write_text("mine")
    expected = {name: data for name, data in zoo_files(zoo / "zoo").items() if data != b"mine"}
    outcome = flexswitch("push", "zoo", "org/zoo", "--json")
    assert outcome.status == 0, outcome.err
    sent = hub.repositories["org/zoo"]
    card = sent.pop("README.md").decode()
    assert sent == expected
    assert "| red | t-switch | " in card
    assert sum("/commit/" in request for request in hub.requests) == 1
    assert len(json.loads(outcome.out)["files"]) == len(expected) + 1


def test_a_zoo_whose_base_id_would_write_into_the_card_is_refused(zoo, hub, flexswitch):
    path = zoo / "zoo" / "zoo.json"
    document = json.loads(path.read_text())
    document["base"]["id"] = "org/x\nlicense: mit\n---\n<script>"
    path.write_text(json.dumps(document))
    outcome = flexswitch("push", "zoo", "org/zoo", "--dry-run")
    assert outcome.status == 3
    assert outcome.error == (
        "zoo/zoo.json: its field 'base.id' is wrong: expected a hub id, org/name or org/name@revision"
    )


def test_a_method_s_name_is_text_in_the_card(zoo, hub, flexswitch):
    path = zoo / "zoo" / "zoo.json"
    document = json.loads(path.read_text())
    document["tasks"]["red"]["method"] = "a|b\n<script>"
    path.write_text(json.dumps(document))
    card = model_card(library.open_zoo(zoo / "zoo"), "org/zoo")
    assert "| red | a\\|b\\\\n\\<script\\> | " in card


def test_a_dry_run_sends_nothing(zoo, hub, flexswitch):
    outcome = flexswitch("push", "zoo", "org/zoo", "--dry-run")
    assert outcome.status == 0
    assert "4 files" in outcome.out
    assert hub.requests == []


def test_a_second_push_removes_what_the_zoo_no_longer_has(zoo, hub, flexswitch):
    assert flexswitch("push", "zoo", "org/zoo").status == 0
    hub.repositories["org/zoo"]["LICENSE"] = b"free"
    assert flexswitch("pack", "-o", "zoo", "--remove", "blue").status == 0
    assert flexswitch("push", "zoo", "org/zoo").status == 0
    assert set(hub.repositories["org/zoo"]) == {*zoo_files(zoo / "zoo"), "README.md", "LICENSE"}


def test_a_damaged_zoo_and_a_wrong_name_are_refused_before_anything_is_sent(zoo, hub, flexswitch):
    (outcome := flexswitch("push", "zoo", "no-org"))
    assert (outcome.status, outcome.error) == (2, "'no-org': expected a repository of the hub, org/name")
    next((zoo / "zoo" / "tasks").glob("red*")).write_bytes(b"damaged")
    assert flexswitch("push", "zoo", "org/zoo").status == 3
    assert hub.requests == []


def test_every_command_takes_the_id_of_a_zoo(zoo, hub, flexswitch):
    assert flexswitch("push", "zoo", "org/zoo").status == 0
    commit = hub.commit("org/zoo")
    shutil.rmtree(zoo / "zoo")
    opened = library.open_zoo(f"org/zoo@{commit}")
    assert list(opened) == ["blue", "red"]
    assert opened["red"].header.name == "red"
    assert flexswitch("verify", "org/zoo").status == 0
    assert flexswitch("inspect", "org/zoo").status == 0
    merge = ("merge", "org/zoo", "--base", "base.safetensors", "-o", "restored", "--task", "red")
    assert flexswitch(*merge).status == 0
    missing = flexswitch("verify", "org/nothing")
    assert missing.status == 1
    assert missing.error.startswith(
        "org/nothing: no such file or folder; from the hub: no repository 'org/nothing'"
    )


def test_a_recipe_pins_the_commit_of_a_hub_id(zoo, hub, flexswitch):
    hub.repositories["org/base"] = {"model.safetensors": (zoo / "base.safetensors").read_bytes()}
    (zoo / "r.yaml").write_text(
        "version: 1\nsteps:\n- {name: a, command: compress, inputs: [red.safetensors], options: {base: org/base, "
        "output: new.fsw}}\n- {name: push, command: push, inputs: [zoo, org/zoo]}\n"
    )
    first = hub.commit("org/base")
    outcome = flexswitch("run", "r.yaml")
    assert outcome.status == 0, outcome.err
    lock = json.loads((zoo / "r.lock").read_text())
    assert lock["hub"] == {"org/base": first}
    assert lock["steps"]["a"]["reads"]["org/base"] == first
    hub.repositories["org/base"]["config.json"] = b"{}"
    hub.requests.clear()
    assert flexswitch("run", "r.yaml", "--check").status == 0
    assert hub.requests == []
