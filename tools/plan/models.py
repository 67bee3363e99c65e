"""Models that can be planned for without their folder: the fields of their public config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import nearest
from fastslow.models.locate import BUILTIN, builtin_path

KNOWN: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_suffix(".json").read_text("utf-8")
)


def config_of(model: str) -> ModelConfig:
    """A known name, a checkpoint folder, a config.json, or a built-in model.

    Raises:
        ValueError: none of them, or a config.json that does not fit.
    """
    if model in KNOWN:
        return ModelConfig.from_json(KNOWN[model])
    path = Path(model)
    if path.is_dir():
        return ModelConfig.from_folder(path)
    if path.is_file():
        try:
            return ModelConfig.from_json(json.loads(path.read_text("utf-8")))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no config.json of a known model: {error}") from None
    if model in BUILTIN:
        return ModelConfig.from_folder(builtin_path(model))
    raise ValueError(f"model={model!r} is unknown{nearest(model, (*KNOWN, *BUILTIN))}")
