"""Which tensors of a checkpoint are quantised, and how: its description files."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

DESCRIPTION = "quant_model_description.json"
METHOD = "ascend"
KV_TYPE = "C8"


class Kind(StrEnum):
    """How a matrix is quantised, as a description spells it."""

    FLOAT = "FLOAT"
    DYNAMIC = "W8A8_DYNAMIC"  # activations per token, as they come
    STATIC = "W8A8"  # activations by a scale and an offset known beforehand


@dataclass(frozen=True, slots=True)
class Scheme:
    """kinds: of the tensors named `X.weight` that are not FLOAT. kv: keys and values are meant to be
    kept in int8."""

    kinds: Mapping[str, Kind]
    kv: bool = False

    @classmethod
    def from_folder(cls, folder: Path) -> Scheme | None:
        """What the folder says of itself; None where it is not quantised.

        ValueError in one sentence for a quantisation that is not known here.
        """
        section = _object(folder / "config.json").get("quantization_config")
        described = _description(folder)
        if section is not None:
            method = section.get("quant_method") if isinstance(section, dict) else section
            if method != METHOD:
                raise ValueError(
                    f"{folder / 'config.json'}: quantization_config has quant_method {method!r}, "
                    f"which is not the known {METHOD!r}"
                )
            if not described.is_file():
                raise ValueError(
                    f"{folder} has a quantization_config, but no {DESCRIPTION} that says which "
                    "tensors are quantised"
                )
        if not described.is_file():
            return None
        return cls.from_description(_object(described), described)

    @classmethod
    def from_description(cls, raw: Mapping[str, Any], path: Path) -> Scheme:
        """From the object of a description file; `path` is for the error's sentence."""
        kinds = {}
        for name, value in raw.items():
            if not name.endswith(".weight") or value == Kind.FLOAT:
                continue
            if value not in (Kind.DYNAMIC, Kind.STATIC):
                raise ValueError(
                    f"{path}: tensor {name} is {value!r}, which is not one of the known "
                    f"{', '.join(Kind)}"
                )
            kinds[name] = Kind(value)
        return cls(kinds, raw.get("kv_cache_type") == KV_TYPE)

    @property
    def sentence(self) -> str:
        """What of it is not run as it stands, for the log."""
        static = sum(kind is Kind.STATIC for kind in self.kinds.values())
        said = [f"{len(self.kinds)} matrices in int8"]
        if static:
            said.append(f"the inputs of {static} static ones in int8 per token, which is finer")
        return ", ".join(said)

    def kind(self, name: str) -> Kind:
        """Of a tensor."""
        return self.kinds.get(name, Kind.FLOAT)

    def renamed(self, name: Callable[[str], str]) -> Scheme:
        """With other names for the tensors."""
        return replace(self, kinds={name(known): kind for known, kind in self.kinds.items()})

    def only(self, names: Container[str]) -> Scheme:
        """Of these tensors alone."""
        return replace(self, kinds={n: kind for n, kind in self.kinds.items() if n in names})

    def without(self, dropped: Callable[[str], bool]) -> Scheme:
        """Of the tensors that are not dropped."""
        return replace(self, kinds={n: k for n, k in self.kinds.items() if not dropped(n)})


def _description(folder: Path) -> Path:
    """The file that describes a folder. Older exporters put the kind into its name.

    ValueError where several do.
    """
    usual = folder / DESCRIPTION
    if usual.is_file():
        return usual
    others = sorted(folder.glob("quant_model_description_*.json"))
    if len(others) > 1:
        raise ValueError(
            f"{folder} has {others[0].name} and {others[1].name}: one must describe it"
        )
    return others[0] if others else usual


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(found).__name__}")
    return found
