"""What a repository holds, and which of its files a model needs: data alone, never code or pickles."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastslow.engine.checkpoint.checkpoint import INDEX, SINGLE
from fastslow.engine.host.files import MOST_BYTES, shown
from fastslow.engine.host.gguf_file import PART
from fastslow.engine.kv.budget import format_bytes
from fastslow.models.hub.name import HubName

CONFIG = "config.json"
SMALL = (  # what the engine reads of a folder beside the weights
    *(CONFIG, "generation_config.json", "fastslow.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
    *("quantize_config.json", "quant_config.json", "quant_model_description.json"),
)
HEAD = "draft_head.safetensors"  # of `fastslow train-draft`
EXPORT = re.compile(r"quant_model_weight[\w.-]*\.safetensors|quant_model_description_\w+\.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SAFE = re.compile(r"[\w+=()][\w .+=()-]*(?:/[\w+=()][\w .+=()-]*)?", re.ASCII)
QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d|TQ\d|MXFP4|NVFP4|BF16|F16|F32|FP16|FP32)(?:_[A-Z0-9]+)*)$",
    re.IGNORECASE,
)
PROJECTOR = re.compile(r"mmproj|imatrix|^mtp-", re.IGNORECASE)  # GGUF files that are no model alone
LISTED = 40  # variants that a message names


@dataclass(frozen=True, slots=True)
class RepoFile:
    """path: in the repository. size: bytes. sha256, git: hashes by which its content is known; "" = unknown."""

    path: str
    size: int
    sha256: str = ""
    git: str = ""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit. gguf: what the hub says of its GGUF files, as their headers have it."""

    name: HubName
    commit: str
    files: Mapping[str, RepoFile]
    license: str = ""
    gguf: Mapping[str, Any] | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether the name asks for a GGUF file, or there is nothing else."""
        return bool(self.name.variant) or bool(self._variants()) and not self._has_tensors()

    def small(self) -> list[RepoFile]:
        """Files that say what the model is. ValueError: one is larger than is ever read."""
        if self.is_gguf:
            return []
        found = [self.files[name] for name in (*SMALL, INDEX) if name in self.files]
        for file in found:
            if file.size > MOST_BYTES:
                most = format_bytes(MOST_BYTES)
                size = format_bytes(file.size)
                raise ValueError(f"{self.name}: {file.path} has {size}, and {most} are the most")
        return found

    def weights(self, read: Callable[[str], Mapping[str, Any]]) -> list[RepoFile]:
        """The files of weights, of a GGUF model in their order. read: gives a small file's JSON object.
        ValueError in one sentence: there are none that run, several to choose from, or one is missing."""
        if self.is_gguf:
            return self._gguf()
        if HEAD in self.files and CONFIG not in self.files:
            return [self.files[HEAD]]
        if SINGLE in self.files:
            names = {SINGLE, HEAD} & self.files.keys()
        elif INDEX in self.files:
            names = self._indexed(read(INDEX))
        else:
            names = {name for name in self.files if EXPORT.fullmatch(name)}
        if not any(name.endswith(".safetensors") for name in names):
            raise ValueError(self._none())
        return [self.files[name] for name in sorted(names)]

    def variants(self) -> list[str]:
        """What stands after the colon for each GGUF model in here."""
        labels = {stem: _quant(stem) for stem in self._variants()}
        several = [*labels.values()]
        return [
            label if label and several.count(label) == 1 else _base(stem)
            for stem, label in labels.items()
        ]

    def _has_tensors(self) -> bool:
        return any(name in self.files for name in (SINGLE, INDEX, HEAD)) or any(
            EXPORT.fullmatch(name) for name in self.files
        )

    def _indexed(self, index: Mapping[str, Any]) -> set[str]:
        places = index.get("weight_map")
        names = set(places.values()) if isinstance(places, Mapping) else set()
        for name in names:
            if name not in self.files:
                raise ValueError(
                    f"{self.name}: its {INDEX} puts tensors into {shown(name)}, which is not there"
                )
        return names

    def _none(self) -> str:
        """Why nothing of it runs."""
        pickles = [name for name in self.files if name.endswith(PICKLES)]
        if pickles:
            return (
                f"{self.name} has its weights in {pickles[0]}, which may hold code and is never loaded: look "
                "for a copy of it in safetensors or GGUF"
            )
        others = sorted({name.rpartition(".")[2] for name in self.files if "." in name})
        has = f"files of the kinds {', '.join(others[:9])}" if others else "no files"
        return f"{self.name} has neither {SINGLE} nor {INDEX} nor a GGUF file, but {has}"

    def _variants(self) -> dict[str, list[RepoFile]]:
        """The files of each GGUF model in here, by its name without the number of the part."""
        found: dict[str, list[RepoFile]] = {}
        for path in sorted(self.files):
            base = path.rpartition("/")[2]
            if path.endswith(".gguf") and not PROJECTOR.search(base):
                split = PART.fullmatch(path)
                found.setdefault(split[1] if split else path.removesuffix(".gguf"), []).append(
                    self.files[path]
                )
        return found

    def _gguf(self) -> list[RepoFile]:
        every = self._variants()
        if not every:
            raise ValueError(f"{self.name} asks for a GGUF file, and {self.name.repo} has none")
        wanted = self.name.variant.upper().removesuffix(".GGUF")
        fitting = [s for s in every if not wanted or wanted in (_quant(s), _base(s).upper())]
        fitting = fitting or [s for s in every if _quant(s).endswith(f"-{wanted}")]  # UD-Q4_K_XL
        if len(fitting) != 1:
            listed = [
                f"{self.name.repo}:{variant} ({format_bytes(sum(file.size for file in parts))})"
                for variant, parts in zip(self.variants(), every.values())
            ]
            more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
            why = "needs a choice" if len(fitting) != 0 or not wanted else "is not there"
            raise ValueError(f"{self.name} {why}: {', '.join(listed[:LISTED])}{more}")
        parts = every[fitting[0]]
        split = PART.fullmatch(parts[0].path)
        if split is not None and int(split[3]) != len(parts):
            raise ValueError(
                f"{self.name} has {len(parts)} of its {int(split[3])} files: {parts[0].path}, ..."
            )
        return parts


def _base(stem: str) -> str:
    return stem.rpartition("/")[2]


def _quant(stem: str) -> str:
    """The quantisation that a file is named after, in capitals; "" where it names none."""
    found = QUANT.search(_base(stem))
    return found[1].upper() if found else ""
