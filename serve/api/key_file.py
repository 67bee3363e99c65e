"""The file of API keys: names, hashes and limits, never a key itself."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fastslow.engine.host.files import read_object
from fastslow.engine.host.unfinished import unfinished
from fastslow.engine.params import nearest, sentence, shown

PREFIX = "fs-"
KEY_BYTES = 32  # of chance in a key
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LONGEST_KEY = 512  # characters that a client may send as a key
MOST_KEYS = 100_000
MOST = 10**9

Count = Annotated[int, Field(ge=1, le=MOST)]
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class KeyLimits(BaseModel):
    """What a key may do; None = no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None  # of prompts and answers
    concurrent: Count | None = None  # requests at the same time
    max_tokens: Count | None = None  # of one answer
    modes: Annotated[list[str], Field(min_length=1, max_length=64)] | None = None
    priority: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None  # from, to

    @model_validator(mode="after")
    def _in_order(self) -> KeyLimits:
        if self.priority is not None and self.priority[0] > self.priority[1]:
            raise ValueError(f"priority={self.priority} must be its smallest and largest number")
        return self


class StoredKey(BaseModel):
    """One key as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    id: Hex16  # chance, which is no part of the key: its memory is named by it
    hash: Hex32  # HMAC-SHA256 of the key with the file's salt
    created: int = 0  # seconds since 1970
    limits: KeyLimits = KeyLimits()


class KeyFile(BaseModel):
    """All keys.

    A key is 256 bits of chance, so nobody finds it by trying, however fast its hash is: a slow hash, as
    passwords need, would only cost time on every request. The salt makes hashes of two files differ, and
    what a lookup takes says nothing about a key to one who does not know the salt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    salt: Hex32
    keys: Annotated[list[StoredKey], Field(max_length=MOST_KEYS)] = []

    @model_validator(mode="after")
    def _all_differ(self) -> KeyFile:
        for what in ("name", "id", "hash"):
            [(value, times)] = Counter(getattr(key, what) for key in self.keys).most_common(1) or [
                ("", 0)
            ]
            if times > 1:
                raise ValueError(f"{what}={shown(value)} stands there {times} times")
        return self

    @classmethod
    def read(cls, path: Path) -> KeyFile:
        """The keys of a file.

        Raises:
            ValueError: it is not there, or does not hold keys; one sentence.
        """
        found = read_object(path)
        if not found:
            raise ValueError(f"{path} holds no keys: make one with `fastslow keys add NAME`")
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            raise ValueError(f"{path}: {sentence(error)}") from None

    def hash_of(self, key: str) -> str:
        return hash_of(key, self.salt)


def usual_file() -> Path:
    """Where keys lie that no path was given for: FASTSLOW_KEYS, else fastslow/keys.json in XDG_CONFIG_HOME,
    else in ~/.config."""
    if named := os.environ.get("FASTSLOW_KEYS"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "fastslow" / "keys.json"


def hash_of(key: str, salt: str) -> str:
    """What is kept of a key."""
    data = key.encode("utf-8", "surrogateescape")
    return hmac.new(bytes.fromhex(salt), data, hashlib.sha256).hexdigest()


def add_key(path: Path, name: str, limits: KeyLimits | None = None) -> str:
    """Make a key and keep its hash in the file, which is made where there is none.

    Returns:
        The key. It is nowhere else.

    Raises:
        ValueError: the name does not fit or is taken, or the file does not hold keys.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"name={shown(name)} must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    with _locked(path):
        known = KeyFile.read(path) if path.exists() else KeyFile(salt=secrets.token_hex(32))
        if any(other.name == name for other in known.keys):
            raise ValueError(f"name={shown(name)} is taken: remove it first, or take another")
        stored = StoredKey(
            name=name,
            id=secrets.token_hex(16),
            hash=known.hash_of(key),
            created=int(time.time()),
            limits=limits or KeyLimits(),
        )
        _write(path, KeyFile(salt=known.salt, keys=[*known.keys, stored]))
    return key


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file.

    Raises:
        ValueError: it is not there, or the file does not hold keys.
    """
    with _locked(path):
        known = KeyFile.read(path)
        kept = [key for key in known.keys if key.name != name]
        if len(kept) == len(known.keys):
            names = [key.name for key in kept]
            raise ValueError(f"name={shown(name)} has no key{nearest(name, names)}")
        _write(path, KeyFile(salt=known.salt, keys=kept))


def _write(path: Path, keys: KeyFile) -> None:
    """The whole file anew: a reader sees the old one or the new one."""
    text = json.dumps(keys.model_dump(mode="json", exclude_none=True), indent=1)
    with unfinished(path) as work:
        number = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(number, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(number)
        os.replace(work, path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two commands at once do not lose each other's key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    number = os.open(path.parent, os.O_RDONLY)  # the file itself is replaced, its folder is not
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
