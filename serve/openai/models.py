"""/v1/models: the model, and the model in each of its modes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from fastslow.engine.params import shown
from fastslow.serve.api.caller import Caller, caller
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.fields import MODE
from fastslow.serve.http.body import json_router

router = json_router()


@router.get("/v1/models")
async def list_models(request: Request, who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
    """All names."""
    state = request.app.state
    return {"object": "list", "data": _models(state.engine.card, state.settings)}


@router.get("/v1/models/{name:path}")
async def get_model(
    name: str, request: Request, who: Annotated[Caller, Depends(caller)]
) -> dict[str, Any]:
    """One of them."""
    for model in _models(request.app.state.engine.card, request.app.state.settings):
        if model["id"] == name:
            return model
    raise ApiError(404, f"model={shown(name)} is not served here", code="model_not_found")


def _models(card: ModelCard, settings: ServerSettings) -> list[dict[str, Any]]:
    """Names that requests may give as their `model`: the model's, its aliases, and those of its modes."""
    same = {
        "object": "model",
        "created": card.created,
        "owned_by": "fastslow",
        "root": card.name,
        "max_model_len": card.context,
        "modes": dict(card.modes),
        "thinks": card.thinks,
        "efforts": list(card.efforts),
    }
    names: list[tuple[str, str | None]] = [(card.name, None)]
    names += [(alias, None) for alias in settings.aliases]
    names += [(f"{card.name}{MODE}{mode}", mode) for mode in card.modes]
    return [
        {**same, "id": id, "parent": None if id == card.name else card.name, "mode": mode}
        for id, mode in names
    ]
