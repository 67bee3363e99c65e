"""The name by which a client asks for a model, or for a model in a mode."""

from __future__ import annotations

from fastslow.engine.params import shown
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.settings import ServerSettings

MODE = ":"  # stands between a model's name and a mode's


def served_mode(model: str | None, card: ModelCard, settings: ServerSettings) -> str | None:
    """The mode that a model's name holds; None: it holds none.

    Raises:
        ApiError: 404, no such model.
    """
    if model is None:
        return None
    name, mode = model, None
    if model not in (card.name, *settings.aliases):
        before, _, after = model.rpartition(MODE)
        if before and after in card.modes:
            name, mode = before, after
    if name in (card.name, *settings.aliases) or settings.any_model:
        return mode
    said = f"model={shown(model)} is not served here; this server has {card.name!r}"
    raise ApiError(404, said, param="model", code="model_not_found")
