"""API keys: the file of their hashes and limits, and those that a running server knows."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from loguru import logger
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
KEY_VARIABLE = "FASTSLOW_API_KEY"
EVERY = 1.0  # seconds between looks at the file
SHORT = 16  # characters: a key of fewer can be found by trying


class KeyLimits(BaseModel):
    """Limits of a key; None = no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    requests_per_minute: Count | None = Field(default=None, description="requests in a minute")
    tokens_per_minute: Count | None = Field(
        default=None, description="tokens of prompts and answers in a minute"
    )
    concurrent: Count | None = Field(default=None, description="requests at the same time")
    max_tokens: Count | None = Field(
        default=None, description="tokens of all answers of a request together"
    )
    modes: Annotated[list[str], Field(min_length=1, max_length=64)] | None = None
    priority: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None  # from, to

    @model_validator(mode="after")
    def _in_order(self) -> KeyLimits:
        if self.priority is not None and self.priority[0] > self.priority[1]:
            raise ValueError(f"priority={self.priority} must be its smallest and largest number")
        return self


class StoredKey(BaseModel):
    """A key as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    id: Hex16  # chance, which is no part of the key: its memory is named by it
    hash: Hex32  # HMAC-SHA256 of the key with the file's salt
    created: int = 0  # seconds since 1970
    limits: KeyLimits = KeyLimits()


class KeyFile(BaseModel):
    """All keys. A key is 256 bits of chance, so nobody finds it by trying, however fast its hash is: a slow hash, as passwords
    need, would only cost time on every request. The salt makes hashes of two files differ, and what a lookup takes says
    nothing about a key to somebody who does not know the salt."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    salt: Hex32
    keys: Annotated[list[StoredKey], Field(max_length=MOST_KEYS)] = []

    @classmethod
    def read(cls, path: Path) -> KeyFile:
        """The keys of a file."""
        found = read_object(path)
        if not found:
            raise ValueError(f"{path} holds no keys: make one with `fastslow keys add NAME`")
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            raise ValueError(f"{path}: {sentence(error)}") from None

    def hash_of(self, key: str) -> str:
        """Hash a key: the hash is all that is kept of it."""
        data = key.encode("utf-8", "surrogateescape")
        return hmac.new(bytes.fromhex(self.salt), data, hashlib.sha256).hexdigest()


def usual_file() -> Path:
    """Return the path of the keys where none was given: FASTSLOW_KEYS, else fastslow/keys.json in XDG_CONFIG_HOME,
    else in ~/.config."""
    if named := os.environ.get("FASTSLOW_KEYS"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "fastslow" / "keys.json"


def add_key(path: Path, name: str, limits: KeyLimits | None = None) -> str:
    """Make a key and keep its hash in the file, which is made where there is none. The key is nowhere else."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"name={shown(name)} must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    with _locked(path):
        known = KeyFile.read(path) if path.exists() else KeyFile(salt=secrets.token_hex(32))
        if any(other.name == name for other in known.keys):
            raise ValueError(f"name={shown(name)} is taken: remove it first, or take another")
        id, hash, now = secrets.token_hex(16), known.hash_of(key), int(time.time())
        stored = StoredKey(name=name, id=id, hash=hash, created=now, limits=limits or KeyLimits())
        _write(path, KeyFile(salt=known.salt, keys=[*known.keys, stored]))
    return key


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file."""
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


def known_keys(path: Path | None = None, single: Sequence[str] = ()) -> KeyRing | None:
    """The keys that a server needs; None: it is open. path: the keys file; None = the usual one, if it is there.
    single: keys that stand alone; none = FASTSLOW_API_KEY, if it is set."""
    if not single and (named := os.environ.get(KEY_VARIABLE)):
        single = (named,)
    if path is None:
        named_file = usual_file()
        path = named_file if named_file.exists() or "FASTSLOW_KEYS" in os.environ else None
    return KeyRing(path, single) if path is not None or single else None


def environment_without_key() -> dict[str, str]:
    """That of this process, for those that it starts: they know no keys."""
    return {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}


def warn_if_open(keys: KeyRing | None, host: str) -> None:
    """Say it loudly where other machines can reach a server without keys."""
    if keys is None and not is_loopback(host):
        logger.warning(
            "THE SERVER IS OPEN: whoever reaches {} may use the model without a key. Make one with "
            "`fastslow keys add NAME`, or give --api-key",
            host,
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address; a name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class KeyRing:
    """Keys of a file, and single ones that were given at the start. The file is read again when it changes. While it
    is broken or gone, the keys that were read last still count, and the log says so once. single: keys that stand
    alone, as of `--api-key`."""

    def __init__(
        self,
        path: Path | None = None,
        single: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._clock = path, clock
        alone = KeyFile(salt=secrets.token_hex(32))
        self._single = alone, {alone.hash_of(key): _alone(key, alone) for key in single}
        self._file: tuple[KeyFile, dict[str, StoredKey]] | None = None
        self._seen: tuple[int, ...] = ()
        self._next_look = clock() + EVERY
        if path is not None:
            self._read(path)

    def find(self, key: str) -> StoredKey | None:
        """The key that a client sent, if it is one. What a dictionary's lookup takes depends on a keyed hash that
        nobody outside can work out."""
        self._look()
        if not 0 < len(key) <= LONGEST_KEY:
            return None
        places = [place for place in (self._file, self._single) if place is not None]
        found = (known.get(file.hash_of(key)) for file, known in places)
        return next((stored for stored in found if stored is not None), None)

    def _look(self) -> None:
        """Read the file again if it changed; at most once in EVERY seconds."""
        now = self._clock()
        if self._path is None or self._file is None or now < self._next_look:
            return
        self._next_look = now + EVERY
        if _facts(self._path) == self._seen:
            return
        try:
            self._read(self._path)
        except ValueError as error:
            count = len(self._file[1])
            logger.error("the API keys are not read anew, {} known ones stay: {}", count, error)
            return
        logger.info("read {} API keys anew from {}", len(self._file[1]), self._path)

    def _read(self, path: Path) -> None:
        self._seen = _facts(path)
        file = KeyFile.read(path)
        self._file = file, {key.hash: key for key in file.keys}
        mode = path.stat().st_mode if path.exists() else 0
        if os.name == "posix" and mode & 0o077:
            said = "{} has mode {:04o}: only its owner should read it, chmod 600"
            logger.warning(said, path, stat.S_IMODE(mode))


def _alone(key: str, file: KeyFile) -> StoredKey:
    """A key of the command line. Its memory is named by the key, so it is the same after a restart."""
    if not 0 < len(key) <= LONGEST_KEY or any(not "!" <= letter <= "~" for letter in key):
        raise ValueError(f"an API key must have 1 to {LONGEST_KEY} characters of ASCII, no blanks")
    if len(key) < SHORT:
        logger.warning("an API key has {} characters: one under {} can be guessed", len(key), SHORT)
    digest = hashlib.sha256(b"fastslow single key\0" + key.encode()).hexdigest()
    return StoredKey(name="default", id=digest[:32], hash=file.hash_of(key))


def _facts(path: Path) -> tuple[int, ...]:
    """Return what differs after a file was written: its time, size and inode; () where it is not there."""
    try:
        facts = os.stat(path)
    except OSError:
        return ()
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
