"""The Hugging Face hub, or a mirror of it (HF_ENDPOINT), with its own cache, locks and progress bars."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import FileMetadataError
from huggingface_hub.utils.tqdm import tqdm

from fastslow.models.hub.name import COMMIT, HubName
from fastslow.models.hub.repository import SAFE, RepoFile, Repository

USUAL = "main"
SLACK = 64 << 20  # bytes
STALE = 3600.0  # seconds without a byte, after which what a killed process left is nobody's


class HuggingFace:
    """A hub: looks up repositories, and fetches their files one at a time, so that Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.place = constants.ENDPOINT
        self.cache = Path(constants.HF_HUB_CACHE).expanduser()

    def folder(self, repository: Repository) -> Path:
        """Where its files lie: links to what is kept by content."""
        return self._storage(repository.name) / "snapshots" / repository.commit

    def cached(self, name: HubName) -> Repository | None:
        """What is here of a repository, by whomever it was fetched, without the network."""
        revision = name.revision or USUAL
        known = self._ref(name)
        commit = (
            revision if name.is_commit else known.read_text().strip() if known.is_file() else ""
        )
        if not COMMIT.fullmatch(commit):
            return None
        folder = self._storage(name) / "snapshots" / commit
        found = [path for path in folder.rglob("*") if path.is_file()]
        files = {str(p.relative_to(folder).as_posix()): p.stat().st_size for p in found}
        return Repository(
            name, commit, {path: RepoFile(path, size) for path, size in files.items()}
        )

    def look_up(self, name: HubName) -> Repository:
        """The hub's list of a repository's files, with sizes and hashes. Raises what the library does."""
        revision = name.revision or USUAL
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        try:
            info = HfApi().model_info(
                name.repo, revision=revision, files_metadata=True, timeout=timeout
            )
        except (AttributeError, KeyError, TypeError) as error:  # of JSON that is no such answer
            raise FileMetadataError(str(error)) from None
        if info.sha is None or not COMMIT.fullmatch(info.sha):
            raise FileMetadataError("no commit")
        files = {
            file.rfilename: RepoFile(
                file.rfilename,
                int(file.size),
                "" if file.lfs is None else str(file.lfs.sha256),
                "" if file.lfs is not None else str(file.blob_id or ""),
            )
            for file in info.siblings or ()
            if SAFE.fullmatch(file.rfilename) and file.size is not None
        }
        card = info.card_data
        said = (card.get("license_name") or card.get("license")) if card is not None else None
        gguf = getattr(info, "gguf", None)
        return Repository(
            name, info.sha, files, str(said or ""), gguf if isinstance(gguf, dict) else None
        )

    def get(self, repository: Repository, file: RepoFile, progress: bool) -> Path:
        """Fetch a file, if it is not here. Raises what the library does; RuntimeError: the revision moved."""
        name, commit = repository.name, repository.commit
        known = self._ref(name)
        named = name.is_commit or known.is_file() and known.read_text().strip() == commit
        revision = commit if named else name.revision or USUAL  # then the library notes its commit
        path = Path(
            hf_hub_download(
                name.repo, file.path, revision=revision, tqdm_class=_bar(file, progress)
            )
        )
        if not path.is_relative_to(self.folder(repository)):
            raise RuntimeError(f"{name} changed while it was fetched: try again")
        return path

    def sweep(self, name: HubName) -> None:
        """Remove what killed processes left half-fetched: the library begins each file anew."""
        with suppress(OSError):  # another's cache, or another process was first
            for path in (self._storage(name) / "blobs").glob("*.incomplete"):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()

    def _storage(self, name: HubName) -> Path:
        return self.cache / f"models--{name.repo.replace('/', '--')}"

    def _ref(self, name: HubName) -> Path:
        return self._storage(name) / "refs" / (name.revision or USUAL)


def _bar(file: RepoFile, progress: bool) -> type[tqdm]:
    """The library's bar, which ends a download that brings much more than the hub lists: it may have no end."""
    most = 2 * file.size + SLACK  # what is sent again after a cut counts twice

    class Bar(tqdm):
        def __init__(self, *given: Any, **how: Any) -> None:
            super().__init__(*given, **(how if progress else how | {"disable": True}))  # type: ignore[no-untyped-call]
            self._got = 0.0

        def update(self, n: float | None = 1) -> Any:
            self._got += n or 0
            if self._got > most:
                raise RuntimeError(
                    f"{file.path} brings more than the {file.size} bytes that its hub lists"
                )
            return super().update(n)

    return Bar
