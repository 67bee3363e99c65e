"""/v1/models, /tokenize and /detokenize: the model, its names, and the tokens of a prompt."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import Request
from pydantic import Field, StrictBool, StrictInt

from fastslow.engine.params import MOST, shown
from fastslow.request.options import GenerateOptions
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.errors import ApiError, refused
from fastslow.serve.api.fields import MODE, Fields, served_mode
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Who
from fastslow.serve.api.mode_fields import ModeFields
from fastslow.serve.api.turns import characters
from fastslow.serve.http.body import json_router
from fastslow.serve.openai.chat_body import ChatMessage, as_turns
from fastslow.serve.tool_calls.offered import openai_tools

router = json_router()
MOST_IDS = 2**20


@router.get("/v1/models")
async def list_models(request: Request, who: Who) -> dict[str, Any]:
    """All names."""
    state = request.app.state
    return {"object": "list", "data": _models(state.engine.card, state.settings)}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request, who: Who) -> dict[str, Any]:
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


class TokenizeRequest(ModeFields, Fields):
    """A text, or a chat in the mode in which it would be asked."""

    model: Annotated[str, Field(max_length=256)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    return_token_strs: StrictBool | None = None


class DetokenizeRequest(Fields):
    model: Annotated[str, Field(max_length=256)] | None = None
    tokens: Annotated[
        list[Annotated[StrictInt, Field(ge=0, le=MOST)]], Field(max_length=MOST_IDS, fail_fast=True)
    ]


@router.post("/tokenize")
async def tokenize(asked: TokenizeRequest, request: Request, who: Who) -> dict[str, Any]:
    """The token ids that a prompt has."""
    engine, settings = request.app.state.engine, request.app.state.settings
    try:
        tokens = await engine.tokenize(_ask(asked, request, settings))
    except ValueError as error:
        raise refused(error, type(asked).model_fields) from None
    texts = None
    if asked.return_token_strs:
        await request.app.state.tokens.learn(tokens)
        texts = [request.app.state.tokens.text_of(token) for token in tokens]
    context = engine.card.context
    return {"count": len(tokens), "max_model_len": context, "tokens": tokens, "token_strs": texts}


@router.post("/detokenize")
async def detokenize(asked: DetokenizeRequest, request: Request, who: Who) -> dict[str, str]:
    """The text of token ids, special tokens too."""
    engine = request.app.state.engine
    served_mode(asked.model, engine.card, request.app.state.settings)
    try:
        return {"prompt": await engine.detokenize(asked.tokens)}
    except ValueError as error:
        raise refused(error, type(asked).model_fields) from None


def _ask(asked: TokenizeRequest, request: Request, settings: ServerSettings) -> GenerateRequest:
    card = request.app.state.engine.card
    named = served_mode(asked.model, card, settings)
    if (asked.prompt is None) == (asked.messages is None):
        raise ValueError("give one of prompt and messages")
    tools = [tool.as_variable() for tool in openai_tools(asked.tools)]
    mode, variables = asked.mode_and_variables(card, settings, named or settings.default_mode)
    kept = {} if asked.messages is None else asked.keeping_thoughts(card, settings)
    variables = kept.pop("chat_template_kwargs", {}) | variables
    if tools:
        variables = {**variables, "tools": tools}
    prompt: Any = asked.prompt
    if asked.messages is not None:
        prompt = as_turns(asked.messages)
    elif variables:
        raise ValueError("chat_template_kwargs are for chats, and this prompt is none")
    size = len(prompt) if isinstance(prompt, str) else characters(prompt)
    if size > settings.prompt_characters:
        raise ValueError(
            f"the prompt has {size} characters; at most {settings.prompt_characters} are taken"
        )
    options = GenerateOptions(mode=mode, chat_template_kwargs=variables or None, **kept)
    return GenerateRequest(f"tokenize-{secrets.token_hex(8)}", prompt, options)
