"""A small model hub on localhost: repositories of revisions of files, over real HTTP."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any
from unittest.mock import patch

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@dataclass
class Reply:
    """One answer, which a hostile server changes.

    Args:
        request: Its method and path.
        status: Of HTTP.
        headers: But the length, which is that of the content unless it is here.
        content: The body; none of it is sent for HEAD.
        repeated: Whether the content is sent again and again until the client leaves.
    """

    request: str
    status: int
    headers: dict[str, str]
    content: bytes
    repeated: bool = False

    @property
    def kind(self) -> str:
        """What was asked for: "listing", "facts" or "content"."""
        if "/api/models/" in self.request and self.status == 200:
            return "listing"
        return "facts" if self.request.startswith("HEAD ") else "content"


@dataclass
class Hub:
    """A user's HF_HOME; repository, then commit, then file; and what was asked of the server."""

    home: Path
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "right"
    requests: list[str] = field(default_factory=list)
    url: str = ""
    tamper: Callable[[Reply], None] = lambda reply: None

    def reset(self) -> None:
        """Hold nothing, as at the beginning."""
        vars(self).update(vars(Hub(self.home, url=self.url)))

    def add(
        self, name: str, folder: Path, revision: str = "main", **more: bytes
    ) -> None:
        """Publish the files of a folder as a revision, and some more."""
        files = {
            path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()
        }
        self.repositories.setdefault(name, {})[COMMITS[revision]] = files | more

    @property
    def downloads(self) -> list[str]:
        sent = [
            line
            for line in self.requests
            if line.startswith("GET ") and "/resolve/" in line
        ]
        return sorted(line.split("/")[-1] for line in sent)


class _Answer(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].strip("/")
        api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        revisions = self.hub.repositories.get(name)
        if revisions is None:
            return self.send(404, error="RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        commit = COMMITS.get(revision, revision)
        if commit not in revisions:
            return self.send(404, error="RevisionNotFound")
        files = revisions[commit]
        if api:
            siblings = [
                {"rfilename": n, "size": len(x), "blobId": hashlib.sha1(x).hexdigest()}
                for n, x in files.items()
            ]
            facts = {"id": name, "sha": commit, "siblings": siblings}
            return self.send(200, json.dumps(facts).encode())
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if name in self.hub.gated and not allowed:
            return self.send(403, error="GatedRepo")
        content = files["/".join(rest[2:])]
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": commit,
        }
        start = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        if not start.isdigit():
            return self.send(200, content, headers)
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.send(206, content[int(start) :], headers)

    def send(
        self,
        status: int,
        content: bytes = b"",
        headers: dict[str, str] | None = None,
        error: str = "",
    ) -> None:
        own = {"X-Error-Code": error} if error else {}
        own |= {"Content-Type": "application/json", **(headers or {})}
        reply = Reply(f"{self.command} {self.path}", status, own, content)
        self.hub.tamper(reply)
        self.send_response(reply.status)
        if not reply.repeated:
            reply.headers.setdefault("Content-Length", str(len(reply.content)))
        for key, value in reply.headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.close_connection |= reply.repeated
        with suppress(OSError):  # the client has left
            while self.command != "HEAD":
                self.wfile.write(reply.content)
                if not reply.repeated:
                    break


class _Server(ThreadingHTTPServer):
    """A server that does not complain of clients that leave."""

    def handle_error(self, request: Any, address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, address)


@contextmanager
def serving(home: Path) -> Iterator[Hub]:
    """A hub, with the environment of a user of it whose HF_HOME is `home`."""
    hub = Hub(home)
    handler = type("Answer", (_Answer,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    of_user = [
        name
        for name in os.environ
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
    ]
    try:
        with patch.dict(os.environ):
            for name in of_user:
                del os.environ[name]
            with environment(HF_ENDPOINT=hub.url, HF_HOME=str(home)):
                yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment; huggingface_hub reads them when it is imported."""
    with patch.dict(os.environ, variables):
        before = _forgotten()
        try:
            yield
        finally:
            _forgotten()
            sys.modules.update(before)


def _forgotten() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]
    return {name: sys.modules.pop(name) for name in names}
