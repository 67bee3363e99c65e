"""The families, found by the architecture that a config.json or a GGUF header names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastslow.engine.host.files import shown
from fastslow.engine.model.families import (
    gpt_oss,
    llama,
    mistral,
    pangu_embedded,
    pangu_moge,
    pangu_v2_config,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from fastslow.engine.model.families.family import Family

FAMILIES: tuple[Family, ...] = (
    pangu_moge.FAMILY,
    pangu_v2_config.FAMILY,
    pangu_embedded.FAMILY,
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    smollm3.FAMILY,
    gpt_oss.FAMILY,
)
_BY_NAME = {name: family for family in FAMILIES for name in family.architectures}


def family_of(architecture: object) -> Family:
    """The family of an architecture in config.json.

    Raises:
        ValueError: none has it.
    """
    family = _BY_NAME.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        known = ", ".join(_BY_NAME)
        raise ValueError(f"architecture {shown(architecture)} is not one of the known {known}")
    return family


def family_in(raw: Mapping[str, Any]) -> Family:
    """The family of a config.json. ValueError where it is not known."""
    return family_of(architecture_in(raw))


def architecture_in(raw: Mapping[str, Any]) -> object:
    """The first of `architectures`."""
    names = raw.get("architectures")
    return names[0] if isinstance(names, list) and names else names


def gguf_family(architecture: str) -> Family:
    """The family of a GGUF file's `general.architecture`.

    Raises:
        ValueError: none has it.
    """
    spelled = {family.gguf.architecture: family for family in FAMILIES if family.gguf is not None}
    if architecture not in spelled:
        known = ", ".join(spelled)
        raise ValueError(
            f"general.architecture {shown(architecture)} is not one of the known {known}"
        )
    return spelled[architecture]
