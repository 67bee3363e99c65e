"""Models that can be planned for, by a name or a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastslow.engine.host.files import read_object
from fastslow.engine.host.gguf_file import is_gguf
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import nearest
from fastslow.models.hub.name import HubName
from fastslow.models.locate import BUILTIN, resolve_model

KNOWN: dict[str, dict[str, Any]] = json.loads(  # the fields of public config.json files
    Path(__file__).with_name("models.json").read_text("utf-8")
)


def config_of(model: str) -> ModelConfig:
    """Of a known name, a checkpoint folder, a GGUF file, a config.json, a built-in model or a hub name. ValueError:
    none of them, or a config.json that does not fit."""
    if model in KNOWN:
        return ModelConfig.from_json(KNOWN[model])
    path = Path(model)
    if path.is_file() and not is_gguf(path):
        try:
            return ModelConfig.from_json(read_object(path))
        except ValueError as error:
            raise ValueError(f"{path} is no config.json of a known model: {error}") from None
    if model in BUILTIN or path.exists() or HubName.parse(model) is not None:
        return ModelConfig.from_folder(resolve_model(model, weights=False))
    raise ValueError(f"model={model!r} is unknown{nearest(model, (*KNOWN, *BUILTIN))}")
