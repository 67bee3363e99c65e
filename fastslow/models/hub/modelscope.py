"""ModelScope, in the place of the Hugging Face hub: FASTSLOW_HUB=modelscope, with the package modelscope-hub."""

from __future__ import annotations

from pathlib import Path

from fastslow.models.hub.name import HubName
from fastslow.models.hub.repository import SAFE, RepoFile, Repository

USUAL = "master"


class ModelScope:
    """As `HuggingFace`. It has no commits: a revision's name stands for one, and files are told by their hashes."""

    def __init__(self) -> None:
        try:
            from modelscope_hub import HubApi, get_default_config
        except ImportError:
            raise ValueError("FASTSLOW_HUB=modelscope needs: pip install modelscope-hub") from None
        self._api, config = HubApi(), get_default_config()
        self.place, self.cache = str(config.endpoint), Path(config.cache_dir)

    def folder(self, repository: Repository) -> Path:
        name = repository.name.repo.replace("/", "--")
        return self.cache / "models" / name / "snapshots" / repository.commit

    def cached(self, name: HubName) -> Repository | None:
        bare = Repository(name, name.revision or USUAL, {})
        folder = self.folder(bare)
        found = [path for path in folder.rglob("*") if path.is_file()]
        files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in found}
        known = {path: RepoFile(path, size) for path, size in files.items()}
        return Repository(name, bare.commit, known) if known else None

    def look_up(self, name: HubName) -> Repository:
        revision = name.revision or USUAL
        listed = self._api.list_repo_files(name.repo, "model", revision=revision)
        files = {
            file.path: RepoFile(file.path, int(file.size), str(file.sha256 or ""))
            for file in listed
            if not file.is_dir and SAFE.fullmatch(file.path)
        }
        return Repository(name, revision, files)

    def get(self, repository: Repository, file: RepoFile, progress: bool) -> Path:
        snapshot = self.folder(repository)
        return Path(
            self._api.download_file(
                repository.name.repo,
                "model",
                file.path,
                revision=repository.commit,
                local_dir=snapshot,
                expected_sha256=file.sha256 or None,
                file_size=file.size,
            )
        )

    def sweep(self, name: HubName) -> None:
        """It resumes what it began."""
