"""/v1/models: the model, and the model in each of its modes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from pydantic import BaseModel

from fastslow.engine.params import shown
from fastslow.serve.api.caller import Caller, caller
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.model_name import MODE
from fastslow.serve.api.settings import ServerSettings
from fastslow.serve.http.body import json_router

router = json_router()


class ServedModel(BaseModel):
    """A name that requests may give as their `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fastslow"
    root: str
    parent: str | None = None
    max_model_len: int
    mode: str | None = None
    modes: dict[str, Any]
    thinks: bool
    efforts: list[str]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ServedModel]


@router.get("/v1/models")
async def list_models(request: Request, who: Annotated[Caller, Depends(caller)]) -> ModelList:
    """All names."""
    return ModelList(data=_models(request.app.state.engine.card, request.app.state.settings))


@router.get("/v1/models/{name:path}")
async def get_model(
    name: str, request: Request, who: Annotated[Caller, Depends(caller)]
) -> ServedModel:
    """One of them."""
    for model in _models(request.app.state.engine.card, request.app.state.settings):
        if model.id == name:
            return model
    raise ApiError(404, f"model={shown(name)} is not served here", code="model_not_found")


def _models(card: ModelCard, settings: ServerSettings) -> list[ServedModel]:
    fields: dict[str, Any] = {
        "created": card.created,
        "root": card.name,
        "max_model_len": card.context,
        "modes": dict(card.modes),
        "thinks": card.thinks,
        "efforts": list(card.efforts),
    }
    made = [ServedModel(id=card.name, **fields)]
    made += [ServedModel(id=alias, parent=card.name, **fields) for alias in settings.aliases]
    made += [
        ServedModel(id=f"{card.name}{MODE}{mode}", parent=card.name, mode=mode, **fields)
        for mode in card.modes
    ]
    return made
