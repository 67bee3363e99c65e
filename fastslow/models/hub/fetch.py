"""From a name to files in the hub's cache: only what is needed, checked, and never a part taken for the whole."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError
from loguru import logger

from fastslow.engine.host.files import read_object
from fastslow.engine.host.machine import free_memory
from fastslow.engine.host.progress import bar
from fastslow.engine.kv.budget import format_bytes
from fastslow.models.hub.about import about
from fastslow.models.hub.errors import explained
from fastslow.models.hub.hubs import HuggingFace, open_hub
from fastslow.models.hub.name import COMMIT, HubName
from fastslow.models.hub.repository import CONFIG, HEADS, RepoFile, Repository

SPARE = 256 << 20  # bytes of the disk that a download leaves free


def fetch(name: HubName, head: bool = False, weights: bool = True, progress: bool = True) -> Path:
    """A model's folder in the cache, its GGUF file, or a draft head's file or folder; what is not here is fetched.
    Where the hub cannot be asked, what was fetched before runs, and one line says so.

    head: it is a draft head, and no model. weights: False: only the files that say what it is, unless a GGUF file
    does. ValueError in one sentence: no such model or revision, no access, or nothing in it that runs.
    RuntimeError in one sentence: no network, no room, or a hub that answers wrongly."""
    hub = open_hub()
    kept = Copy(hub, hub.cached(name), weights)
    speaks = {"tokenizer.json", "tokenizer.model"} & kept.found.files.keys()
    done = head or kept.found.is_gguf or speaks  # else small files may be missing
    if done and COMMIT.fullmatch(name.revision) and (path := kept.whole()):
        return path
    try:
        found = hub.look_up(name)
    except Exception as error:  # noqa: BLE001 - whatever the library raises becomes one sentence
        why = explained(error, name, hub.place)
        if isinstance(error, RevisionNotFoundError) or not (path := kept.whole()):
            raise why from None
        if not isinstance(error, OfflineModeIsEnabled):
            logger.warning("{}; what was fetched before runs", why)
        return path
    return Copy(hub, found, weights).complete(head, progress)


@dataclass(frozen=True, slots=True)
class Copy:
    """A repository's files in the cache. with_weights: not only those that say what the model is."""

    hub: HuggingFace
    found: Repository
    with_weights: bool

    @property
    def folder(self) -> Path:
        return self.hub.folder(self.found)

    def complete(self, head: bool, progress: bool) -> Path:
        """Fetch what is not here, check all, and give what the engine opens."""
        name, hub = self.found.name, self.hub
        hub.sweep(name)
        for file in self.found.small():
            self._get(file, progress)
        files = self._weights()
        if absent := [file for file in files if not (self.folder / file.path).is_file()]:
            if not head:
                logger.info("{}: {}", name, about(self.found, self.folder))
            self._check_room(size := sum(file.size for file in absent))
            logger.info("fetching {} of {} from {}", format_bytes(size), name, hub.place)
            began, drawn = time.monotonic(), sys.stderr.isatty() or not progress
            for file in absent if drawn else bar(absent, f"fetching {name}"):
                self._get(file, progress)
            logger.info("{} came in {:.0f} s", name, time.monotonic() - began)
        return self._checked(files)

    def whole(self) -> Path | None:
        """Return the path that the engine opens; None: some of it is missing or cannot be used."""
        try:
            return self._checked(self._weights())
        except (ValueError, RuntimeError) as error:
            logger.debug("what is here of {} does not do: {}", self.found.name, error)
            return None

    def _weights(self) -> list[RepoFile]:
        if not self.with_weights and not self.found.is_gguf and CONFIG in self.found.files:
            return []
        return self.found.weights(lambda path: read_object(self.folder / path))

    def _checked(self, weights: list[RepoFile]) -> Path:
        """The folder, or the one file that is all there is."""
        for file in (*self.found.small(), *weights):
            self._check(file)
        heads = all(file.path in HEADS for file in weights)
        alone = heads and CONFIG not in self.found.files
        one = alone or self.found.is_gguf
        return self.folder / weights[0].path if one else self.folder

    def _get(self, file: RepoFile, progress: bool) -> None:
        """Fetch a file that is not here, and hold it against the hub's list."""
        if (path := self.folder / file.path).is_file():
            return
        try:
            self.hub.get(self.found, file, progress)
        except Exception as error:  # noqa: BLE001 - as above
            raise explained(error, self.found.name, self.hub.place) from None
        self._check(file)
        if file.sha256:
            with path.open("rb") as data:
                digest = hashlib.file_digest(data, "sha256").hexdigest()
            if digest != file.sha256:
                self._refuse(file, f"the sha256 {digest[:12]}, not {file.sha256[:12]}")

    def _check(self, file: RepoFile) -> None:
        """RuntimeError for a file that is no whole copy of the hub's, or lies outside the cache; it goes."""
        path = self.folder / file.path
        if not path.resolve().is_relative_to(self.hub.cache.resolve()):
            self._refuse(file, f"its place outside of {self.hub.cache}", inside=False)
        if (size := path.stat().st_size) != file.size:
            self._refuse(file, f"{size} bytes, not {file.size}")

    def _refuse(self, file: RepoFile, has: str, inside: bool = True) -> NoReturn:
        """Remove a file, with what a link to it shows."""
        path = self.folder / file.path
        for part in (path.resolve(), path) if inside else (path,):
            part.unlink(missing_ok=True)
        raise RuntimeError(f"{self.found.name}: {file.path} had {has}, and was removed: try again")

    def _check_room(self, size: int) -> None:
        """RuntimeError where the disk has no room; a warning where memory has none."""
        name, cache, need = self.found.name, self.hub.cache, format_bytes(size)
        place = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
        if size + SPARE > (free := shutil.disk_usage(place).free):
            more = "free some of it, or set HF_HOME to a folder on a larger disk"
            raise RuntimeError(f"{name} takes {need}, and {cache} has {format_bytes(free)}: {more}")
        if size > (memory := free_memory("cpu")):
            said = "{} takes {}, and {} of memory is free: try a smaller GGUF variant, or int4"
            logger.warning(said, name, need, format_bytes(memory))
