"""From a name to files in the hub's cache: only what is needed, checked, and never a part taken for the whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Protocol

from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError
from loguru import logger

from fastslow.engine.host.files import read_object
from fastslow.engine.host.machine import free_memory
from fastslow.engine.host.progress import bar
from fastslow.engine.kv.budget import format_bytes
from fastslow.models.hub.about import about, check_family
from fastslow.models.hub.errors import explained
from fastslow.models.hub.name import HubName
from fastslow.models.hub.repository import CONFIG, HEAD, RepoFile, Repository

HUB = "FASTSLOW_HUB"
HUBS = "huggingface", "modelscope"
SPARE = 256 << 20  # bytes of the disk that a download leaves free


class Hub(Protocol):
    """Where models come from; `huggingface.py` says what each method does."""

    place: str
    cache: Path

    def folder(self, repository: Repository) -> Path: ...
    def cached(self, name: HubName) -> Repository | None: ...
    def look_up(self, name: HubName) -> Repository: ...
    def get(self, repository: Repository, file: RepoFile, progress: bool) -> Path: ...
    def sweep(self, name: HubName) -> None: ...


def fetch(
    name: HubName, *, head: bool = False, weights: bool = True, progress: bool = True
) -> Path:
    """A model's folder in the cache, its GGUF file, or a draft head's file or folder; what is not here is fetched.

    Without a network, or where the hub is down, what was fetched before runs, and one line says so.

    Args:
        head: it is a draft head, and no model.
        weights: False: only the files that say what it is, unless a GGUF file does.
        progress: draw bars where standard error is a terminal.

    Raises:
        ValueError: one sentence: no such model or revision, no access, or nothing in it that runs.
        RuntimeError: one sentence: no network, no room, or a hub that answers wrongly.
    """
    hub = open_hub()
    here = hub.cached(name)
    try:
        if here is not None and name.is_commit and (path := _whole(hub, here, weights)):
            return path
        found = hub.look_up(name)
    except Exception as error:  # noqa: BLE001 - whatever the library raises becomes one sentence
        path = (
            None
            if here is None or isinstance(error, RevisionNotFoundError)
            else _whole(hub, here, weights)
        )
        if path is None:
            raise explained(error, name, hub.place) from None
        if not isinstance(error, OfflineModeIsEnabled):
            logger.warning("{}; what was fetched before runs", explained(error, name, hub.place))
        return path
    return _fetched(hub, found, head, weights, progress)


def open_hub() -> Hub:
    """The hub that FASTSLOW_HUB names. ValueError: none is called so, or its package is missing."""
    named = os.environ.get(HUB) or HUBS[0]
    if named not in HUBS:
        raise ValueError(f"{HUB}={named!r} must be one of {', '.join(HUBS)}")
    if named == "modelscope":
        from fastslow.models.hub.modelscope import ModelScope

        return ModelScope()
    from fastslow.models.hub.huggingface import HuggingFace

    return HuggingFace()


def _fetched(hub: Hub, found: Repository, head: bool, whole: bool, progress: bool) -> Path:
    name, folder = found.name, hub.folder(found)
    hub.sweep(name)
    small = found.small()
    for file in small:
        _get(hub, found, file, progress)
    if not head:
        check_family(found, folder)
    weights = _weights(hub, found, whole)
    absent = [file for file in weights if not _is_here(folder / file.path, file)]
    if absent:
        if not head:
            logger.info("{}: {}", name, about(found, folder))
        _check_room(hub, name, absent)
        began, size = time.monotonic(), format_bytes(sum(file.size for file in absent))
        logger.info("fetching {} of {} from {}", size, name, hub.place)
        drawn = progress and sys.stderr.isatty()
        for file in (
            absent if drawn or not progress else bar(absent, f"fetching {name}", len(absent))
        ):
            _get(hub, found, file, progress)
        logger.info("{} came in {:.0f} s", name, time.monotonic() - began)
    for file in (*small, *weights):
        _check_kept(hub, found, file)
    return _place(found, folder, weights)


def _weights(hub: Hub, found: Repository, whole: bool) -> list[RepoFile]:
    if not whole and not found.is_gguf:
        return []
    return found.weights(lambda path: read_object(hub.folder(found) / path))


def _place(found: Repository, folder: Path, weights: list[RepoFile]) -> Path:
    """What the engine opens: the folder, or the one file that is all there is."""
    if found.is_gguf or CONFIG not in found.files and [file.path for file in weights] == [HEAD]:
        return folder / weights[0].path
    return folder


def _whole(hub: Hub, here: Repository, whole: bool) -> Path | None:
    """The model in the cache; None where a part of it is missing."""
    folder = hub.folder(here)
    try:
        weights = _weights(hub, here, whole)
        for file in (*here.small(), *weights):
            _check_kept(hub, here, file)
    except (ValueError, RuntimeError) as error:
        logger.debug("the copy of {} in the cache does not do: {}", here.name, error)
        return None
    return _place(here, folder, weights)


def _get(hub: Hub, found: Repository, file: RepoFile, progress: bool) -> None:
    """Fetch a file that is not here, and hold it against the hub's list."""
    path = hub.folder(found) / file.path
    if path.is_file():
        if _is_here(path, file) or not _inside(hub, path):
            return
        logger.warning(
            "{}: {} in the cache is no whole copy, and is fetched anew", found.name, path
        )
        _drop(path)
    try:
        path = hub.get(found, file, progress)
    except Exception as error:  # noqa: BLE001 - as above
        raise explained(error, found.name, hub.place) from None
    _check_kept(hub, found, file)
    for kind, wanted in (("sha256", file.sha256), ("sha1", file.git)):
        if wanted and (digest := _digest(path, kind)) != wanted:
            _drop(path)
            raise RuntimeError(
                f"{found.name}: {file.path} came with the {kind} {digest[:12]}, and {hub.place} lists "
                f"{wanted[:12]}: it was removed; try again"
            )


def _check_kept(hub: Hub, found: Repository, file: RepoFile) -> None:
    """RuntimeError for a file that is no whole copy of the hub's, which goes, or lies outside the cache."""
    path = hub.folder(found) / file.path
    if not _inside(hub, path):
        path.unlink(missing_ok=True)
        raise RuntimeError(f"{found.name}: {path} led out of the cache {hub.cache}: it was removed")
    if (size := path.stat().st_size) != file.size:
        _drop(path)
        raise RuntimeError(
            f"{found.name}: {file.path} has {size} bytes, and {hub.place} lists {file.size}: it was removed; "
            "try again"
        )


def _is_here(path: Path, file: RepoFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _inside(hub: Hub, path: Path) -> bool:
    return path.resolve().is_relative_to(hub.cache.resolve())


def _drop(path: Path) -> None:
    """Remove a file of the cache, with what a link to it shows."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _digest(path: Path, kind: str) -> str:
    """Of a file's bytes; sha1 as git takes it."""
    with path.open("rb") as file:
        if kind == "sha256":
            return hashlib.file_digest(file, kind).hexdigest()
        start = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        return hashlib.file_digest(file, start.copy).hexdigest()


def _check_room(hub: Hub, name: HubName, absent: list[RepoFile]) -> None:
    """RuntimeError where the disk has no room; a warning where memory has none."""
    size = sum(file.size for file in absent)
    place = next(folder for folder in (hub.cache, *hub.cache.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if size + SPARE > free:
        raise RuntimeError(
            f"{name} takes {format_bytes(size)}, and {hub.cache} has {format_bytes(free)} free: free some of it, "
            "or set HF_HOME to a folder on a larger disk"
        )
    if size > (memory := free_memory("cpu")):
        logger.warning(
            "{} takes {}, and {} of memory is free: a smaller GGUF variant or --quantization int4 may fit",
            name,
            format_bytes(size),
            format_bytes(memory),
        )
