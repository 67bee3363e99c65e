"""The Hugging Face hub, or a mirror of it (HF_ENDPOINT), and ModelScope: each with its own cache and locks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import FileMetadataError
from huggingface_hub.utils.tqdm import tqdm

from fastslow.models.hub.errors import public
from fastslow.models.hub.name import COMMIT, HubName
from fastslow.models.hub.repository import SAFE, RepoFile, Repository

HUB = "FASTSLOW_HUB"
SLACK = 64 << 20  # bytes that a download may bring beyond what is listed
STALE = 3600.0  # seconds without a byte, after which what a killed process left is nobody's


def open_hub() -> HuggingFace:
    """The hub that FASTSLOW_HUB names. ValueError: none is called so, or its package is missing."""
    named = os.environ.get(HUB) or "huggingface"
    if named not in (hubs := {"huggingface": HuggingFace, "modelscope": ModelScope}):
        raise ValueError(f"{HUB}={named!r} must be one of {', '.join(hubs)}")
    return hubs[named]()


class HuggingFace:
    """Looks up repositories, and fetches their files one at a time, so that Ctrl-C ends it at once."""

    usual = "main"  # revision
    kept = "models--*"  # folders of repositories

    def __init__(self) -> None:
        self.place = public(constants.ENDPOINT)
        self.cache = Path(constants.HF_HUB_CACHE).expanduser()

    def folder(self, repository: Repository) -> Path:
        """Return the folder of its files: links to what is kept by content."""
        return self._storage(repository.name) / "snapshots" / repository.commit

    def cached(self, name: HubName) -> Repository:
        """Return what is here of a repository, by whomever it was fetched. It uses no network."""
        here = Repository(name, self._commit(name), {})
        folder = self.folder(here)
        found = [path for path in folder.rglob("*") if path.is_file()] if here.commit else []
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
        return replace(here, files={path: RepoFile(path, size) for path, size in sizes.items()})

    def names(self) -> Iterator[HubName]:
        """The repositories of which something is here."""
        for folder in sorted(self.cache.glob(self.kept)):
            with suppress(ValueError):  # no name of a hub
                plain = folder.name.removeprefix("models--").replace("--", "/", 1)
                if (name := HubName.parse(plain)) is not None:
                    yield name

    def look_up(self, name: HubName) -> Repository:
        """The hub's list of a repository's files, with sizes and hashes. Raises what the library does."""
        asked = {"revision": name.revision or self.usual, "timeout": constants.HF_HUB_ETAG_TIMEOUT}
        try:
            info = HfApi().model_info(name.repo, files_metadata=True, **asked)  # type: ignore[arg-type]
        except (AttributeError, KeyError, TypeError) as error:  # of JSON that is no such answer
            raise FileMetadataError(str(error)) from None
        if not COMMIT.fullmatch(info.sha or ""):
            raise FileMetadataError("no commit")
        files = {
            f.rfilename: RepoFile(f.rfilename, f.size, "" if f.lfs is None else f.lfs.sha256)
            for f in info.siblings or ()
            if SAFE.fullmatch(f.rfilename) and f.size is not None
        }
        card: Any = info.card_data or {}
        licence = str(card.get("license_name") or card.get("license") or "")
        return Repository(name, str(info.sha), files, licence, getattr(info, "gguf", None) or {})

    def get(self, repository: Repository, file: RepoFile, progress: bool) -> None:
        """Fetch a file. Raises what the library does; RuntimeError: the revision moved meanwhile."""
        name, bar = repository.name, _bar(file, progress)
        revision = name.revision or self.usual  # the library notes which commit it means
        if self._commit(name) == repository.commit:
            revision = repository.commit
        path = hf_hub_download(name.repo, file.path, revision=revision, tqdm_class=bar)
        if not Path(path).is_relative_to(self.folder(repository)):
            raise RuntimeError(f"{name} changed while it was fetched: try again")

    def sweep(self, name: HubName) -> None:
        """Remove what killed processes left half-fetched: the library begins each file anew."""
        with suppress(OSError):  # another's cache, or another process was first
            for path in (self._storage(name) / "blobs").glob("*.incomplete"):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()

    def _storage(self, name: HubName) -> Path:
        return self.cache / f"models--{name.repo.replace('/', '--')}"

    def _commit(self, name: HubName) -> str:
        """Return the commit that a revision meant when it was last looked up; "" = never."""
        known = self._storage(name) / "refs" / (name.revision or self.usual)
        said = known.read_text("utf-8", "replace").strip() if known.is_file() else name.revision
        return said if COMMIT.fullmatch(said) else ""


class ModelScope(HuggingFace):
    """Hub of ModelScope. A revision's name stands for a commit, which it has not. Its library checks hashes, and
    resumes."""

    usual = "master"
    kept = "models/*"

    def __init__(self) -> None:
        try:
            from modelscope_hub import HubApi, get_default_config
        except ImportError:
            raise ValueError(f"{HUB}=modelscope needs pip install modelscope-hub") from None
        self._api, config = HubApi(), get_default_config()
        self.place, self.cache = public(str(config.endpoint)), Path(config.cache_dir)

    def look_up(self, name: HubName) -> Repository:
        revision = self._commit(name)
        listed = self._api.list_repo_files(name.repo, "model", revision=revision)
        files = [RepoFile(f.path, int(f.size), f.sha256 or "") for f in listed if not f.is_dir]
        return Repository(name, revision, {f.path: f for f in files if SAFE.fullmatch(f.path)})

    def get(self, repository: Repository, file: RepoFile, progress: bool) -> None:
        how = {"revision": repository.commit, "local_dir": self.folder(repository)}
        checks = {"expected_sha256": file.sha256 or None, "file_size": file.size}
        self._api.download_file(repository.name.repo, "model", file.path, **how, **checks)

    def _storage(self, name: HubName) -> Path:
        return self.cache / "models" / name.repo.replace("/", "--")

    def _commit(self, name: HubName) -> str:
        return name.revision or self.usual


def _bar(file: RepoFile, progress: bool) -> type[tqdm]:
    """The library's bar, which ends a download that brings much more than the hub lists: it may have no end."""
    most = 2 * file.size + SLACK  # what is sent again after a cut counts twice

    class Bar(tqdm):
        def __init__(self, *given: Any, **how: Any) -> None:
            how |= {} if progress else {"disable": True}
            super().__init__(*given, **how)  # type: ignore[no-untyped-call]
            self._got = 0.0

        def update(self, n: float | None = 1) -> Any:
            self._got += n or 0
            if self._got > most:
                raise RuntimeError(f"{file.path} brings more than its {file.size} bytes")
            return super().update(n)

    return Bar
