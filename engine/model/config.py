"""What a model is made of, read from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from fastslow.engine.host.files import read_object
from fastslow.engine.host.gguf_file import is_gguf
from fastslow.engine.model.families.catalog import architecture_in, family_in
from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.gguf_config import header_config
from fastslow.engine.model.rope_scaling import RopeScaling
from fastslow.engine.model.shape import ClampedSwiglu, DecoderShape, Router

__all__ = ("ClampedSwiglu", "ModelConfig", "RopeScaling", "Router")


@dataclass(frozen=True, slots=True)
class ModelConfig(DecoderShape):
    """The shape of a decoder, as the family that config.json names reads it."""

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read `folder`/config.json, or the header of a GGUF file. ValueError in one sentence for whatever does
        not fit."""
        if is_gguf(folder):
            try:
                return cls.from_json(header_config(folder))
            except ValueError as error:
                said = str(error)
                raise ValueError(said if str(folder) in said else f"{folder}: {said}") from None
        path = folder / "config.json"
        if not folder.is_dir():
            raise ValueError(f"model folder {folder} does not exist")
        if not path.is_file():
            inside = sorted(folder.glob("*.gguf"))
            more = f"; for the GGUF file in it give {inside[0]}" if inside else ""
            raise ValueError(f"{folder} has no config.json{more}")
        raw = read_object(path)
        try:
            return cls.from_json(raw)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """From the fields of a config.json. ValueError names the field, its value, the limit."""
        family = family_in(raw)
        known = ConfigJson(family.spelled(raw), architecture_in(raw))
        shape = family.read(known)
        known.check_rest()
        shape.check()
        return cls(**{field.name: getattr(shape, field.name) for field in fields(shape)})
