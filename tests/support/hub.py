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

LARGE = 4096  # bytes from which a file is kept by its sha256, and sent by the "CDN"
TOKEN = "hf_rightone"
COMMIT = "a" * 40
CHUNK = 1 << 16


@dataclass
class Repo:
    """Files by path at one commit, and what is wrong with them, by kind and path: "cut" (once, after so many bytes),
    "slow" (seconds before each CHUNK), "size" and "sha256" (listed instead of the truth), "etag", and "answer"
    (html, loop or gone)."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gguf: dict[str, Any] = field(default_factory=dict)
    gated: bool = False
    wrong: dict[tuple[str, str], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, **more: Any) -> Repo:
        return cls({p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}, **more)

    def listed(self) -> Iterator[dict[str, Any]]:
        for path, data in self.files.items():
            size = self.wrong.get(("size", path), len(data))
            digest = self.wrong.get(("sha256", path), hashlib.sha256(data).hexdigest())
            lfs = {"sha256": digest, "size": size, "pointerSize": 130}
            more = {"lfs": lfs} if len(data) >= LARGE else {}
            yield {"rfilename": path, "size": size, "blobId": "b" * 40} | more


@dataclass
class FakeHub:
    """repos: by owner/name. asked: method and path of every request. answer: "html" or "down" for all of them."""

    repos: dict[str, Repo]
    asked: list[str] = field(default_factory=list)
    answer: str = ""
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

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        kind = path.split("/")[1]
        parts = path.removeprefix("/api/models").removeprefix("/cdn").split("/")[1:]
        name, revision, file = "/".join(parts[:2]), "/".join(parts[3:4]), "/".join(parts[4:])
        repo = self.hub.repos.get(name)
        if self.hub.answer:
            down = self.hub.answer == "down"
            return self._send(503 if down else 200, b"<html>sign in to this network</html>")
        if repo is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if kind == "cdn":
            return self._content(repo, "/".join(parts[2:]))
        token = self.headers.get("authorization")
        if repo.gated and token != f"Bearer {TOKEN}":
            return self._send(403 if token else 401, b"{}", {"X-Error-Code": "GatedRepo"})
        if revision not in ("main", repo.commit):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if kind == "api":
            facts = {"cardData": {"license": "apache-2.0"}, "gguf": repo.gguf}
            body = {"id": name, "sha": repo.commit, "siblings": list(repo.listed()), **facts}
            return self._send(200, json.dumps(body).encode())
        self._resolve(repo, name, file)

    do_HEAD = do_GET

    def _resolve(self, repo: Repo, name: str, file: str) -> None:
        headers, answer = {"X-Repo-Commit": repo.commit}, repo.wrong.get(("answer", file))
        if answer == "gone":
            return self._send(404, b"{}", headers | {"X-Error-Code": "EntryNotFound"})
        if answer == "loop":
            return self._send(307, b"", {"Location": self.path})
        data = b"<html>" if answer else repo.files[file]
        etag = repo.wrong.get(("etag", file), hashlib.sha256(data).hexdigest())
        if len(data) < LARGE:
            return self._send(200, data, {} if answer else headers | {"ETag": f'"{etag}"'})
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag}"'}
        self._send(302, b"", headers | linked | {"Location": f"{self.hub.cdn}/cdn/{name}/{file}"})

    def _content(self, repo: Repo, file: str) -> None:
        data, asked = repo.files[file], self.headers.get("range", "bytes=0-")
        first = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        last = repo.wrong.pop(("cut", file), len(data))
        self.close_connection = last < len(data)
        for start in range(first, last, CHUNK):
            time.sleep(repo.wrong.get(("slow", file), 0.0))
            try:
                self.wfile.write(data[start : min(start + CHUNK, last)])
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
                return

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running_hub(**repos: Repo) -> Iterator[FakeHub]:
    """A hub that answers while the block runs. repos: by owner__name."""
    hub = FakeHub({name.replace("__", "/", 1): repo for name, repo in repos.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url, hub.cdn = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
