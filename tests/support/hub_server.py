"""A small Hugging Face hub on 127.0.0.1: the endpoints that huggingface_hub calls to read and write a model."""

import base64
import hashlib
import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from urllib.parse import unquote, urlsplit

EXPIRED_TOKEN = "hf_expired"


@dataclass
class HubServer:
    """Serves repositories given as `org/name` or `org/name@revision` -> {path: bytes}; the former is main.

    The sets and mappings may be changed while it runs.
    """

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)  # repositories; one can list their files and not read them
    cut: set[str] = field(default_factory=set)  # paths whose next download ends after half the bytes
    reset: set[str] = field(default_factory=set)  # the same, and the connection is reset
    requests: list[str] = field(default_factory=list)  # "GET /path", "GET /path bytes=5-", ... as they came

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, key: str) -> str:
        """Returns the commit of `org/name` or `org/name@revision`: it follows from the files."""
        digest = hashlib.sha1(key.encode())
        for path, content in sorted(self.repositories[key].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def find(self, repo: str, revision: str) -> str | None:
        """Returns the key of the repository at a branch, a tag or a commit."""
        keys = [key for key in self.repositories if key.partition("@")[0] == repo]
        names = {key: (key.partition("@")[2] or "main", self.commit(key)) for key in keys}
        return next((key for key in keys if revision in names[key]), None)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: HubServer, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def do_GET(self) -> None:
        byte_range = self.headers.get("Range")
        self.hub.requests.append(" ".join(filter(None, (self.command, unquote(self.path), byte_range))))
        route = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        if f"Bearer {EXPIRED_TOKEN}" == self.headers.get("Authorization"):
            return self._refuse(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        match route:
            case ["api", "models", org, name]:
                return self._list(f"{org}/{name}", "main", tree=False)
            case ["api", "models", org, name, ("revision" | "tree") as view, revision]:
                return self._list(f"{org}/{name}", revision, tree=view == "tree")
            case [org, name, "resolve", revision, *parts]:
                return self._send_file(f"{org}/{name}", revision, "/".join(parts))
        return self._refuse(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"POST {unquote(self.path)}")
        match [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]:
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                self.hub.repositories.setdefault(repo, {})
                return self._send_json({"url": f"{self.hub.url}/{repo}", "id": repo})
            case ["api", "validate-yaml"]:
                return self._send_json({"errors": [], "warnings": []})
            case ["api", "models", _, _, "preupload", _]:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self._send_json({"files": files})
            case ["api", "models", org, name, "commit", _]:
                self._commit(f"{org}/{name}", [json.loads(line) for line in body.splitlines()])
                oid = self.hub.commit(f"{org}/{name}")
                return self._send_json(
                    {"commitOid": oid, "commitUrl": f"{self.hub.url}/{org}/{name}/commit/{oid}"}
                )
        return self._refuse(404, {})

    def _commit(self, repo: str, operations: list[dict[str, Any]]) -> None:
        files = self.hub.repositories[repo]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]

    def _send_json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keeps the log off the terminal."""

    def _list(self, repo: str, revision: str, *, tree: bool) -> None:
        if (key := self._find(repo, revision)) is None:
            return
        files = self.hub.repositories[key]
        entries = [
            {"type": "file", "path": path, "oid": _oid(content), "size": len(content)}
            for path, content in files.items()
        ]
        info = {"id": repo, "sha": self.hub.commit(key), "siblings": [{"rfilename": path} for path in files]}
        headers = {
            "Content-Type": "application/json",
            "X-HF-Warning": "token; You send requests without a token",
        }
        self._send(200, json.dumps(entries if tree else info).encode(), headers)

    def _send_file(self, repo: str, revision: str, path: str) -> None:
        if repo in self.hub.gated:
            return self._refuse(
                403 if "Authorization" in self.headers else 401, {"X-Error-Code": "GatedRepo"}
            )
        if (key := self._find(repo, revision)) is None:
            return None
        content = self.hub.repositories[key].get(path)
        if content is None:
            return self._refuse(404, {"X-Error-Code": "EntryNotFound"})
        headers = {
            "ETag": f'"{_oid(content)}"',
            "X-Repo-Commit": self.hub.commit(key),
            "Accept-Ranges": "bytes",
        }
        byte_range = self.headers.get("Range")
        if byte_range is None:
            return self._send(200, content, headers, path)
        start = int(byte_range.removeprefix("bytes=").removesuffix("-"))
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(206, content[start:], headers, path)

    def _find(self, repo: str, revision: str) -> str | None:
        key = self.hub.find(repo, revision)
        if key is None:
            known = any(key.partition("@")[0] == repo for key in self.hub.repositories)
            self._refuse(404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
        return key

    def _refuse(self, status: int, headers: Mapping[str, str]) -> None:
        self._send(status, b"", headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], path: str = "") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if path not in self.hub.cut | self.hub.reset:
            self.wfile.write(body)
            return
        self.wfile.write(body[: len(body) // 2])
        if path in self.hub.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        self.hub.cut.discard(path)
        self.hub.reset.discard(path)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
