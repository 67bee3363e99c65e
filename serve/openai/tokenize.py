"""/tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel, Field, StrictBool, StrictInt

from fastslow.engine.params import MOST
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.caller import Caller, caller
from fastslow.serve.api.errors import refused
from fastslow.serve.api.fields import Fields
from fastslow.serve.api.mode_fields import ModeFields
from fastslow.serve.api.model_name import served_mode
from fastslow.serve.api.settings import ServerSettings
from fastslow.serve.api.turns import characters
from fastslow.serve.http.body import json_router
from fastslow.serve.openai.messages import ChatMessage, as_turns
from fastslow.serve.tool_calls.protocols import openai_tools

router = json_router()
Who = Annotated[Caller, Depends(caller)]
MOST_IDS = 2**20


class TokenizeRequest(ModeFields, Fields):
    """A text, or a chat in the mode in which it would be asked."""

    model: Annotated[str, Field(max_length=256)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    return_token_strs: StrictBool | None = None


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Fields):
    model: Annotated[str, Field(max_length=256)] | None = None
    tokens: Annotated[
        list[Annotated[StrictInt, Field(ge=0, le=MOST)]], Field(max_length=MOST_IDS, fail_fast=True)
    ]


class Detokenized(BaseModel):
    prompt: str


@router.post("/tokenize")
async def tokenize(asked: TokenizeRequest, request: Request, who: Who) -> Tokenized:
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
    return Tokenized(
        count=len(tokens), max_model_len=engine.card.context, tokens=tokens, token_strs=texts
    )


@router.post("/detokenize")
async def detokenize(asked: DetokenizeRequest, request: Request, who: Who) -> Detokenized:
    """The text of token ids, special tokens too."""
    engine = request.app.state.engine
    served_mode(asked.model, engine.card, request.app.state.settings)
    try:
        return Detokenized(prompt=await engine.detokenize(asked.tokens))
    except ValueError as error:
        raise refused(error, type(asked).model_fields) from None


def _ask(asked: TokenizeRequest, request: Request, settings: ServerSettings) -> Ask:
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
    return Ask(
        id=f"tokenize-{secrets.token_hex(8)}",
        prompt=prompt,
        mode=mode,
        chat_template_kwargs=variables or None,
        **kept,
    )
