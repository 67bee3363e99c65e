"""/v1/models, /tokenize and /detokenize: the model, its names, and the tokens of a prompt."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import Request
from pydantic import Field, StrictBool

from fastslow.engine.params import shown
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.errors import ApiError, fitting
from fastslow.serve.api.fields import MODE, Fields, SharedFields, served_mode
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Caller, Who
from fastslow.serve.api.mode_fields import Tokens
from fastslow.serve.api.turns import check_turns
from fastslow.serve.http.body import json_router
from fastslow.serve.openai.chat_body import ChatMessage, Tools, as_turns
from fastslow.tool_calls.offered import openai_tools

router = json_router()
MOST_IDS = 2**20


@router.get("/v1/models")
async def list_models(request: Request, who: Who) -> dict[str, Any]:
    """List the names that a request may give as its `model`."""
    state = request.app.state
    return {"object": "list", "data": _models(state.engine.card, state.settings)}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request, who: Who) -> dict[str, Any]:
    """Return one model by its name. ApiError 404: it is not served here."""
    for model in _models(request.app.state.engine.card, request.app.state.settings):
        if model["id"] == name:
            return model
    raise ApiError(404, f"model={shown(name)} is not served here", code="model_not_found")


def _models(card: ModelCard, settings: ServerSettings) -> list[dict[str, Any]]:
    """Names that requests may give as their `model`: the model's, its aliases, and those of its modes. The first one
    says what each mode is."""
    same = {
        "object": "model",
        "created": card.created,
        "owned_by": "fastslow",
        "root": card.name,
        "max_model_len": card.context,
        "default_max_tokens": min(settings.sampling["max_tokens"], card.context),
        "default_mode": settings.default_mode,
        "thinks": card.thinks,
        "efforts": list(card.efforts),
        "sampling": {n: v for n, v in settings.sampling_of(card).items() if n != "max_tokens"},
    }
    own = {**same, "id": card.name, "parent": None, "mode": None, "modes": dict(card.modes)}
    names: list[tuple[str, str | None]] = [(alias, None) for alias in settings.aliases]
    names += [(f"{card.name}{MODE}{mode}", mode) for mode in card.modes]
    return [own, *({**same, "id": id, "parent": card.name, "mode": mode} for id, mode in names)]


class TokenizeRequest(SharedFields):
    """A text, or a chat in the mode in which it would be answered."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    tools: Tools | None = None
    return_token_strs: StrictBool | None = None


class DetokenizeRequest(Fields):
    model: Annotated[str, Field(max_length=256)] | None = None
    tokens: Annotated[list[Tokens], Field(max_length=MOST_IDS, fail_fast=True)]


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request, who: Who) -> dict[str, Any]:
    """The token ids that a prompt has."""
    engine, settings = request.app.state.engine, request.app.state.settings
    with fitting(TokenizeRequest.model_fields):
        tokens = await engine.tokenize(_request_of(body, who, engine.card, settings))
    texts = None
    if body.return_token_strs:
        await request.app.state.tokens.learn(tokens)
        texts = [request.app.state.tokens.text_of(token) for token in tokens]
    context = engine.card.context
    return {"count": len(tokens), "max_model_len": context, "tokens": tokens, "token_strs": texts}


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request, who: Who) -> dict[str, str]:
    """The text of token ids, special tokens too."""
    engine = request.app.state.engine
    served_mode(body.model, engine.card, request.app.state.settings)
    with fitting(DetokenizeRequest.model_fields):
        return {"prompt": await engine.detokenize(body.tokens)}


def _request_of(
    body: TokenizeRequest, who: Caller, card: ModelCard, settings: ServerSettings
) -> GenerateRequest:
    if (body.prompt is None) == (body.messages is None):
        raise ValueError("give one of prompt and messages")
    prompt: Any = body.prompt if body.messages is None else as_turns(body.messages)
    check_turns("prompt", [{"text": prompt}] if body.messages is None else prompt, settings)
    mode, id = served_mode(body.model, card, settings), f"tokenize-{secrets.token_hex(8)}"
    request = body.as_request(prompt, who, card, settings, id=id, default_mode=mode)
    if not body.tools:
        return request
    variables = {"tools": [tool.as_variable() for tool in openai_tools(body.tools)]}
    given = request.options.chat_template_kwargs or {}
    return request.with_options(chat_template_kwargs={**given, **variables})
