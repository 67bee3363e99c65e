"""Files of a repository, and those of them that a model needs: data alone, never code or pickles."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastslow.engine.checkpoint.shards import INDEX, SINGLE
from fastslow.engine.host.files import MOST_BYTES, shown
from fastslow.engine.host.gguf_file import PART, most_like
from fastslow.engine.kv.budget import format_bytes
from fastslow.models.hub.name import HubName

CONFIG = "config.json"
HEAD = "draft.head"  # of `fastslow train-draft`: safetensors
OLD_HEAD = "draft_head.safetensors"  # its name of before, which other programs take for weights
HEADS = frozenset((HEAD, OLD_HEAD))
SMALL = (  # what the engine reads of a folder beside the weights
    *(CONFIG, "generation_config.json", "fastslow.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "quantize_config.json", "quant_config.json"),
)
EXPORT = re.compile(r"quant_model_weight[\w.-]*\.safetensors")
DESCRIBED = re.compile(r"[\w.-]+\.safetensors\.index\.json|quant_model_description[\w.-]*\.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SAFE = re.compile(r"[\w+=()][\w .+=()-]*(?:/[\w+=()][\w .+=()-]*)?", re.ASCII)
QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d|TQ\d|MXFP4|NVFP4|BF16|FP?16|FP?32)(?:_[A-Z0-9]+)*)$",
    re.IGNORECASE,
)
NO_MODEL = re.compile(r"mmproj|imatrix|^mtp-", re.IGNORECASE)  # GGUF files beside one
DRAFTS = re.compile(r"mtp-[^/]*\.gguf")  # a layer for multi-token prediction beside a model
LISTED = 40  # variants that a message names


@dataclass(frozen=True, slots=True)
class RepoFile:
    """path: in the repository. size: bytes. sha256: of its content; "" = unknown."""

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit. gguf: what the hub says of its GGUF files, as their headers have it."""

    name: HubName
    commit: str
    files: Mapping[str, RepoFile]
    license: str = ""
    gguf: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_gguf(self) -> bool:
        """True where the name asks for a GGUF file, or there is nothing else."""
        tensors = any(n in (SINGLE, INDEX, *HEADS) or EXPORT.fullmatch(n) for n in self.files)
        return bool(self.name.variant) or bool(self._variants()) and not tensors

    def small(self) -> list[RepoFile]:
        """Files that say what the model is. ValueError: one is larger than is ever read."""
        names = (*SMALL, *(name for name in self.files if DESCRIBED.fullmatch(name)))
        found = [self.files[n] for n in names if n in self.files and not self.is_gguf]
        for file in found:
            if file.size > MOST_BYTES:
                has, most = format_bytes(file.size), format_bytes(MOST_BYTES)
                raise ValueError(f"{self.name}: {file.path} has {has}, and {most} are the most")
        return found

    def weights(self, read: Callable[[str], Mapping[str, Any]]) -> list[RepoFile]:
        """The files of weights, of a GGUF model in their order. read: gives a small file's JSON object.
        ValueError in one sentence: there are none that run, several to choose from, or one is missing."""
        if self.is_gguf:
            return self._gguf()
        names = {name for name in self.files if EXPORT.fullmatch(name)}
        indices = (INDEX, *(f"{name}.index.json" for name in sorted(names)))
        if SINGLE in self.files:
            names = {SINGLE}
        elif index := next((name for name in indices if name in self.files), None):
            places = read(index).get("weight_map")
            names = set(map(str, places.values())) if isinstance(places, Mapping) else set()
            for n in names:
                if n not in self.files or not n.endswith(".safetensors"):
                    raise ValueError(
                        f"{self.name}: {index} names {shown(n)}, no safetensors file of it"
                    )
        if names := names | (HEADS & self.files.keys()):
            order = sorted(names, key=lambda n: (n in HEADS, n))  # a head alone is no model
            return [self.files[name] for name in order]
        pickle = next((name for name in self.files if name.endswith(PICKLES)), None)
        code = f"{pickle}, which may hold code and is never loaded"
        has = code if pickle else f"{len(self.files)} files"
        raise ValueError(f"{self.name} has neither safetensors nor a GGUF file, but {has}")

    def variants(self) -> list[str]:
        """Return the variant of each GGUF model in here: the part of a name after the colon."""
        stems = [*self._variants()]
        labels = [_quant(stem) for stem in stems]
        bases = (stem.rpartition("/")[2] for stem in stems)
        return [q if q and labels.count(q) == 1 else base for q, base in zip(labels, bases)]

    def _variants(self) -> dict[str, list[RepoFile]]:
        """The files of each GGUF model in here, by its name without the number of the part."""
        found: dict[str, list[RepoFile]] = {}
        for path in sorted(self.files):
            if path.endswith(".gguf") and not NO_MODEL.search(path.rpartition("/")[2]):
                split = PART.fullmatch(path)
                stem = split[1] if split else path.removesuffix(".gguf")
                found.setdefault(stem, []).append(self.files[path])
        return found

    def _gguf(self) -> list[RepoFile]:
        every, repo = self._variants(), self.name.repo
        bases = {stem: stem.rpartition("/")[2] for stem in every}
        wanted = self.name.variant.upper().removesuffix(".GGUF")
        fitting = [s for s in every if not wanted or wanted in (_quant(s), bases[s].upper())]
        fitting = fitting or [s for s in every if _quant(s).endswith(f"-{wanted}")]  # UD-Q4_K_XL
        if len(fitting) != 1:
            sizes = (format_bytes(sum(file.size for file in parts)) for parts in every.values())
            named = zip(self.variants(), sizes)
            listed = [f"{repo}:{name} ({size})" for name, size in named][:LISTED]
            why = "needs a choice" if fitting else "is not there"
            raise ValueError(f"{self.name} {why}: {', '.join(listed) or 'no GGUF file is'}")
        parts = every[fitting[0]]
        split = PART.fullmatch(parts[0].path)
        if split is not None and int(split[3]) != len(parts):
            raise ValueError(f"{self.name} has {len(parts)} of {int(split[3])} files")
        folder, slash, name = parts[0].path.rpartition("/")
        near = (path.removeprefix(folder + slash) for path in self.files if path.startswith(folder))
        beside = most_like(name, [path for path in near if DRAFTS.fullmatch(path)])
        return parts if beside is None else [*parts, self.files[folder + slash + beside]]


def _quant(stem: str) -> str:
    """The quantisation that a file is named after, in capitals; "" where it names none."""
    found = QUANT.search(stem)
    return found[1].upper() if found else ""
