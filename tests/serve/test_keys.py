"""API keys: the file, what a running server knows of it, and who is let in."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from fastapi.testclient import TestClient
from refusals import refused
from serve_tools import Clock

from fastslow.serve.api import keys
from fastslow.serve.api.keys import KeyFile, KeyLimits, KeyRing, add_key
from fastslow.serve.app import create_app
from fastslow.tools.cli.app import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "keys.json"


def name_of(ring: KeyRing | None, key: str) -> str:
    found = ring and ring.find(key)
    return found.name if found else ""


def test_a_key_is_found_and_is_nowhere_in_its_file(path: Path) -> None:
    key = add_key(path, "bot")
    other = add_key(path, "page", KeyLimits(concurrent=2))
    ring = KeyRing(path)
    assert name_of(ring, key) == "bot" and name_of(ring, other) == "page"
    assert ring.find(other).limits.concurrent == 2  # type: ignore[union-attr]
    stored = KeyFile.read(path).keys[0]
    odd = (stored.hash, stored.id, "", "x", "é" * 40, "\udcff", "k" * 10**6)
    for wrong in (*odd, key[:-1], key + "x", key.upper()):
        assert ring.find(wrong) is None, wrong[:20]
    assert key.removeprefix("fs-") not in path.read_text("utf-8") and len(key) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_is_read_again_when_it_changes(path: Path, logged: list[str]) -> None:
    clock = Clock()
    first = add_key(path, "first")
    ring = KeyRing(path, clock=clock)
    second = add_key(path, "second")
    assert ring.find(second) is None  # no look yet
    clock.now += 2
    assert name_of(ring, second) == "second"
    keys.remove_key(path, "first")
    clock.now += 2
    assert ring.find(first) is None and name_of(ring, second) == "second"
    assert sum("read" in line for line in logged) == 2


def test_a_broken_file_keeps_the_keys_and_says_so_once(path: Path, logged: list[str]) -> None:
    clock = Clock()
    key = add_key(path, "bot")
    whole = path.read_text("utf-8")
    ring = KeyRing(path, clock=clock)
    for broken in ("{", '{"salt": "x"}', "[]", ""):
        logged.clear()
        path.write_text(broken, "utf-8")
        for _ in range(3):
            clock.now += 2
            assert name_of(ring, key) == "bot", broken
        assert len(logged) == 1 and "known ones stay" in logged[0], logged
    path.unlink()
    clock.now += 2
    assert name_of(ring, key) == "bot"
    path.write_text(whole, "utf-8")
    keys.remove_key(path, "bot")
    clock.now += 2
    assert ring.find(key) is None


@pytest.mark.parametrize(("content", "said"), [
    ("{}", "holds no keys"),
    ('{"salt": 3}', "salt=3 must"),
    ('{"salt": "SALT", "keys": [{"name": "a b", "id": "ID", "hash": "HASH"}]}', "name"),
    ('{"salt": "SALT", "keys": [{"name": "a", "id": "ID"}]}', "hash' is missing"),
    ('{"salt": "SALT", "kys": []}', "field 'kys' is unknown"),
    (
        '{"salt": "SALT", "keys": [{"name": "a", "id": "ID", "hash": "HASH", "limits": {"concurrent": 0}}]}',
        "concurrent=0 must",
    ),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(path: Path, content: str, said: str) -> None:
    text = content.replace("SALT", "a" * 64)
    path.parent.mkdir()
    path.write_text(text.replace("ID", "b" * 32).replace("HASH", "c" * 64), "utf-8")
    refused(said, KeyRing, path)


def test_names_and_limits_are_checked_and_keys_made_at_once_are_all_there(path: Path) -> None:
    add_key(path, "bot")
    for name in ("", "a b", "-x", "x" * 65, "é", "a\n", "../x"):
        refused("name=", add_key, path, name)
    refused("is taken", add_key, path, "bot")
    refused("did you mean 'bot'", keys.remove_key, path, "bott")
    with pytest.raises(ValueError, match="smallest and largest"):
        KeyLimits(priority=[3, 1])
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: add_key(path, f"key{n}"), range(24)))
    ring = KeyRing(path)
    assert [name_of(ring, key) for key in made] == [f"key{n}" for n in range(24)]
    assert [*path.parent.iterdir()] == [path]


def test_a_file_that_others_read_is_warned_of(path: Path, logged: list[str]) -> None:
    add_key(path, "bot")
    KeyRing(path)
    assert logged == []
    path.chmod(0o644)
    KeyRing(path)
    assert len(logged) == 1 and "0644" in logged[0] and "chmod 600" in logged[0]


def test_a_single_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logged: list[str]) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("FASTSLOW_KEYS", raising=False)
    monkeypatch.delenv("FASTSLOW_API_KEY", raising=False)
    assert keys.known_keys() is None
    keys.warn_if_open(None, "127.0.0.1")
    assert logged == []
    keys.warn_if_open(None, "0.0.0.0")
    assert len(logged) == 1 and "OPEN" in logged[0]
    ring = keys.known_keys(single=["a-key-of-some-length", "another-of-some-length"])
    assert ring is not None and name_of(ring, "another-of-some-length") == "default"
    one, other = ring.find("a-key-of-some-length"), ring.find("another-of-some-length")
    assert one and other and one.id != other.id and ring.find("a-key-of-some-lengtH") is None
    monkeypatch.setenv("FASTSLOW_API_KEY", "from-the-environment")
    assert name_of(keys.known_keys(), "from-the-environment") == "default"
    monkeypatch.delenv("FASTSLOW_API_KEY")
    key = add_key(keys.usual_file(), "bot")  # a file at the usual place counts without being named
    assert name_of(keys.known_keys(), key) == "bot"
    for wrong in ("", "a b", "é" * 20, "x" * 513):
        refused("an API key must have", KeyRing, single=[wrong])
    monkeypatch.setenv("FASTSLOW_KEYS", str(tmp_path / "not there"))
    refused("holds no keys", keys.known_keys)


def test_who_is_let_in(path: Path) -> None:
    key = add_key(path, "bot")
    with TestClient(create_app(FakeEngine(), keys=KeyRing(path))) as client:
        known: Any = [{"Authorization": f"Bearer {key}"}, {"authorization": f"bearer {key} "}]
        for headers in (*known, {"x-api-key": key}):
            assert client.get("/v1/models", headers=headers).status_code == 200
        unknown: Any = [{"Authorization": wrong} for wrong in (key, "Basic abc", "Bearer ")]
        for wrong in ({}, *unknown, {"x-api-key": "fs-other"}, {"x-api-key": b"\xff\x00"}):
            answer = client.post("/v1/chat/completions", headers=wrong)
            assert answer.status_code == 401, wrong
            error = answer.json()["error"]
            assert error["code"] == "invalid_api_key" and error["param"] is None
            assert answer.headers["www-authenticate"] == "Bearer"
        wrong = client.post("/v1/messages").json()["error"]
        assert wrong["type"] == "authentication_error", "as Anthropic's client expects it"
        assert client.get("/health").status_code == 200
        assert client.get("/not-there").status_code == 401  # what is not named open is closed
        assert client.get("/health/").status_code == 401


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["keys", *arguments])
    return int(end.value.code or 0)


def test_the_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ("--file", str(path))
    assert run("add", "bot", *file, *("--concurrent", "2", "--allow-modes", "fast, auto", "--priority", "0,5")) == 0
    key = capsys.readouterr().out.strip()
    assert name_of(KeyRing(path), key) == "bot" and run("list", "--json", *file) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["limits"] == {"concurrent": 2, "modes": ["fast", "auto"], "priority": [0, 5]}
    assert run("list", *file) == 0
    shown = capsys.readouterr().out
    assert "bot" in shown and key not in shown and run("add", "other", "--priority", "x", *file) == 2
    assert run("add", "bot", *file) == 2 and run("remove", "bot", *file) == 0
    assert run("remove", "bot", *file) == 2 and KeyRing(path).find(key) is None
    assert [*path.parent.iterdir()] == [path]
