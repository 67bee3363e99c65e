"""Name of a model on a hub: owner/name, owner/name@revision, owner/name:VARIANT."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastslow.engine.checked import shown

LINK = re.compile(r"^(hf://|(https?://)?(hf\.co|huggingface\.co|modelscope\.cn/models)/)")
PART = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)
REVISION = re.compile(r"\w(?:[\w./-]{0,198}\w)?", re.ASCII)
NAME = re.compile(r"([^@:]*)(?:@([^:]*))?(?::(.*))?", re.DOTALL)
BAD = re.compile(r"\.\.|--|//|\.(git|lock)(?: |$)")
COMMIT = re.compile(r"[0-9a-f]{40}")  # a revision that never means other files
FILES = (".gguf", ".safetensors", ".json", ".bin", ".pt")  # ends of names that are of files here
FORMS = "owner/name, owner/name@revision or owner/name:VARIANT"


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, with "" for its usual revision, and "" where no GGUF variant is asked for. variant: a quantisation,
    such as Q4_K_M, or a file's whole name."""

    repo: str
    revision: str = ""
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """The name in a text, which may be the address of the model's page; None: it is none, but a path or a
        single word. ValueError in one sentence where it looks like one, and no hub has such names."""
        given = LINK.sub("", text, count=1)
        found = NAME.fullmatch(given)
        assert found is not None  # it matches any text
        repo, revision, variant = found.groups("")
        is_path = repo.count("/") != 1 or repo.startswith((".", "/", "~")) or repo.endswith(FILES)
        if is_path and given == text:
            return None
        sound = all(PART.fullmatch(part) for part in repo.split("/")) and not is_path
        for part, kind, mark in ((revision, REVISION, "@"), (variant, PART, ":")):
            sound = sound and bool(kind.fullmatch(part) if part else mark not in given)
        if not sound or BAD.search(f"{repo} {revision} {variant}"):
            letters = "of letters, digits, '-', '_' and '.'"
            raise ValueError(f"model={shown(text)} is no name of a hub: that is {FORMS}, {letters}")
        return cls(repo, revision, variant)

    def __str__(self) -> str:
        revision = self.revision and f"@{self.revision}"
        return self.repo + revision + (self.variant and f":{self.variant}")
