"""The API keys that a running server knows."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from loguru import logger

from fastslow.serve.api.key_file import LONGEST_KEY, KeyFile, StoredKey, hash_of, usual_file

KEY_VARIABLE = "FASTSLOW_API_KEY"
EVERY = 1.0  # seconds between looks at the file
SHORT = 16  # characters: a key of fewer can be found by trying


def known_keys(path: Path | None = None, single: Sequence[str] = ()) -> KeyRing | None:
    """The keys that a server asks for; None: it is open.

    Args:
        path: the keys file; None = the usual one, if it is there.
        single: keys that stand alone; none = FASTSLOW_API_KEY, if it is set.

    Raises:
        ValueError: see `KeyRing`; or the path is a file that is not there.
    """
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
    """Say it loudly where other machines can reach a server that asks for no key."""
    if keys is None and not is_loopback(host):
        logger.warning(
            "THE SERVER IS OPEN: whoever reaches {} may use the model without a key. Make one with "
            "`fastslow keys add NAME`, or give --api-key",
            host,
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class KeyRing:
    """Keys of a file, and single ones that were given at the start.

    The file is read again when it changes. While it is broken or gone, the keys that were read last go on to
    count, and the log says so once.

    Args:
        path: the file; None = there is none.
        single: keys that stand alone, as of `--api-key`; one or several.
        clock: seconds.

    Raises:
        ValueError: the file does not hold keys, or a single key is empty or too long.
    """

    def __init__(
        self,
        path: Path | None = None,
        single: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._clock = path, clock
        self._salt = secrets.token_hex(32)
        alone = [_alone(key, self._salt) for key in single]
        self._single = {key.hash: key for key in alone}
        self._file = None if path is None else KeyFile.read(path)
        self._by_hash = _by_hash(self._file)
        self._seen = None if path is None else _facts(path)
        self._next_look = clock() + EVERY
        if path is not None:
            _warn_of_readers(path)

    def find(self, key: str) -> StoredKey | None:
        """The key that a client sent, if it is one.

        What a dictionary's lookup takes depends on a keyed hash that nobody outside can work out, and the
        hashes are then compared in constant time.
        """
        self._look()
        if not 0 < len(key) <= LONGEST_KEY:
            return None
        places = [(self._salt, self._single)]
        if self._file is not None:
            places.append((self._file.salt, self._by_hash))
        found = None
        for salt, known in places:
            hash = hash_of(key, salt)
            stored = known.get(hash)
            if stored is not None and hmac.compare_digest(stored.hash, hash):
                found = stored
        return found

    def _look(self) -> None:
        """Read the file again if it changed; at most once in EVERY seconds."""
        now = self._clock()
        if self._path is None or now < self._next_look:
            return
        self._next_look = now + EVERY
        facts = _facts(self._path)
        if facts == self._seen:
            return
        self._seen = facts
        try:
            self._file = KeyFile.read(self._path)
        except ValueError as error:
            count = len(self._by_hash)
            logger.error("the API keys are not read anew, {} known ones stay: {}", count, error)
            return
        self._by_hash = _by_hash(self._file)
        logger.info("read {} API keys anew from {}", len(self._by_hash), self._path)
        _warn_of_readers(self._path)


def _by_hash(file: KeyFile | None) -> dict[str, StoredKey]:
    return {} if file is None else {key.hash: key for key in file.keys}


def _alone(key: str, salt: str) -> StoredKey:
    """A key of the command line. Its memory is named by the key, so it is the same after a restart."""
    if not 0 < len(key) <= LONGEST_KEY:
        raise ValueError(f"an API key must have 1 to {LONGEST_KEY} characters, not {len(key)}")
    if any(not "!" <= letter <= "~" for letter in key):
        raise ValueError("an API key must have no blanks and only ASCII letters, digits and signs")
    if len(key) < SHORT:
        logger.warning("an API key has {} characters: one under {} can be guessed", len(key), SHORT)
    digest = hashlib.sha256(b"fastslow single key\0" + key.encode()).hexdigest()
    return StoredKey(name="default", id=digest[:32], hash=hash_of(key, salt))


def _facts(path: Path) -> tuple[int, int, int] | None:
    """What differs when a file was written; None where it is not there."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _warn_of_readers(path: Path) -> None:
    """Say it where other users may read or change the file."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError:  # gone meanwhile
        return
    if os.name == "posix" and mode & 0o077:
        logger.warning("{} has mode {:04o}: only its owner should read it, chmod 600", path, mode)
