"""A small hub on 127.0.0.1 that speaks what huggingface_hub asks of the real one, with faults to order."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 4096  # bytes from which a file is kept apart, by its sha256, and sent by the "CDN"
TOKEN = "hf_rightone"


@dataclass
class Repo:
    """Files by path at one commit, and what is wrong with them, by path.

    cut: bytes after which the connection ends, once. slow: seconds before each 64 KiB. html, loop, gone, leaves: how
    `resolve` answers. sizes, hashes: what is listed instead of the truth."""

    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})
    gguf: dict[str, Any] | None = None
    gated: bool = False
    cut: dict[str, int] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)  # path -> "html", "loop", "gone" or an ETag
    sizes: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, **more: Any) -> Repo:
        found = {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }
        return cls(found, **more)

    def listed(self) -> list[dict[str, Any]]:
        return [self._entry(path, data) for path, data in sorted(self.files.items())]

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        size = self.sizes.get(path, len(data))
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        found: dict[str, Any] = {"rfilename": path, "size": size, "blobId": git}
        if len(data) >= LARGE:
            sha = self.hashes.get(path, sha256(data))
            found["lfs"] = {"sha256": sha, "size": size, "pointerSize": 130}
        return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class FakeHub:
    """repos: by owner/name. asked: method and path of every request. down: it answers 503 to all. odd: "html" answers a
    page to all."""

    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    down: bool = False
    odd: str = ""
    url: str = ""
    cdn: str = ""  # the same under another name: the library sends no token there

    @property
    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        asked = (a for a in self.asked if a.startswith("GET") and "/api/" not in a)
        return list(dict.fromkeys(a.rpartition("/")[2] for a in asked))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.down:
            return self._send(503, b"down")
        if self.hub.odd == "html":
            return self._send(200, b"<html>sign in to this network</html>")
        parts = path.strip("/").split("/")
        try:
            if parts[0] == "api":
                return self._info("/".join(parts[2:4]), "/".join(parts[5:]) or "main")
            if parts[0] == "cdn":
                return self._content("/".join(parts[1:3]), "/".join(parts[3:]))
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.gated and self.headers.get("authorization") != f"Bearer {TOKEN}":
            status = 403 if self.headers.get("authorization") else 401
            self._send(status, b"{}", {"X-Error-Code": "GatedRepo"})
            return None
        return repo

    def _commit(self, repo: Repo, revision: str) -> str | None:
        commit = revision if revision in repo.revisions.values() else repo.revisions.get(revision)
        if commit is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _info(self, name: str, revision: str) -> None:
        if (repo := self._repo(name)) is None or (commit := self._commit(repo, revision)) is None:
            return
        body = {
            "id": name,
            "sha": commit,
            "siblings": repo.listed(),
            "cardData": repo.card,
            "tags": [],
        }
        self._send(200, json.dumps(body | ({"gguf": repo.gguf} if repo.gguf else {})).encode())

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name)) is None or (commit := self._commit(repo, revision)) is None:
            return
        headers, odd = {"X-Repo-Commit": commit}, repo.odd.get(path, "")
        if path not in repo.files or odd == "gone":
            return self._send(404, b"{}", headers | {"X-Error-Code": "EntryNotFound"})
        if odd == "html":
            return self._send(200, b"<html>no</html>")
        if odd == "loop":
            return self._send(307, b"", {"Location": self.path})
        data = repo.files[path]
        headers["ETag"] = f'"{odd or sha256(data)}"'
        if len(data) < LARGE:
            return self._send(200, data, headers)
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{odd or sha256(data)}"'}
        self._send(302, b"", headers | linked | {"Location": f"{self.hub.cdn}/cdn/{name}/{path}"})

    def _content(self, name: str, path: str) -> None:
        repo = self.hub.repos[name]
        data, first = repo.files[path], 0
        if asked := self.headers.get("range"):
            first = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        cut = repo.cut.pop(path, None)
        for start in range(first, len(data) if cut is None else cut, 1 << 16):
            time.sleep(repo.slow.get(path, 0.0))
            self.wfile.write(
                data[start : min(start + (1 << 16), len(data) if cut is None else cut)]
            )
        if cut is not None:
            self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running_hub(**repos: Repo) -> Iterator[FakeHub]:
    """A hub that answers while the block runs. repos: by owner__name."""
    hub = FakeHub({name.replace("__", "/", 1): repo for name, repo in repos.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url, hub.cdn = (
        f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost")
    )
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def environment(hub: FakeHub, home: Path) -> dict[str, str]:
    """What a process needs to use the hub, with a cache of its own."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
