"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Annotated

from fastapi import Depends, Request, Response

from fastslow.serve.anthropic.answer import block_of, head_of, stop_of, usage_of
from fastslow.serve.anthropic.errors import ERRORS
from fastslow.serve.anthropic.history import as_turns
from fastslow.serve.anthropic.message_events import MessageEvents
from fastslow.serve.anthropic.schema import (
    MessageAnswer,
    MessagesRequest,
    PromptRequest,
    TokenCount,
)
from fastslow.serve.api.answer_parts import AnswerParts
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.caller import Caller, caller
from fastslow.serve.api.engine import Engine
from fastslow.serve.api.errors import refused
from fastslow.serve.api.model_name import served_mode
from fastslow.serve.api.settings import ServerSettings
from fastslow.serve.api.turns import check_turns
from fastslow.serve.http.answer import while_connected, whole
from fastslow.serve.http.body import json_router
from fastslow.serve.http.json_text import dumped
from fastslow.serve.http.request_id import request_id
from fastslow.serve.http.sse import STREAMED, EventStream
from fastslow.serve.observe.answer_metrics import metrics_of
from fastslow.serve.tool_calls.chat import beside_others, offered
from fastslow.serve.tool_calls.prepare import Prepared
from fastslow.serve.tool_calls.protocols import anthropic_choice, anthropic_tools

router = json_router(ERRORS)
Who = Annotated[Caller, Depends(caller)]


@router.post("/v1/messages", response_model=MessageAnswer, responses=STREAMED)
async def messages(asked: MessagesRequest, request: Request, who: Who) -> Response:
    """Answer a conversation."""
    state = request.app.state
    engine: Engine = state.engine
    settings: ServerSettings = state.settings
    id = f"msg_{secrets.token_hex(12)}"
    making = partial(_asked, asked, id, who, engine, settings)
    ask, tools = await beside_others(asked.tools, making)
    ids, head = [id, request_id(request.scope)], head_of(id, engine.card.name)
    parts = AnswerParts(tools.parser(), not asked.hides_thought)
    if asked.stream:

        async def count() -> int:
            return len(await engine.tokenize(ask))

        events = MessageEvents(head, parts, count)
        return EventStream(engine, [ask], events, settings).known_as(state.requests, ids, who)
    with state.requests.running(ids, [id], who):
        output = await while_connected(request.receive, whole(engine, ask))
    answer = output.choices[0]
    parts.finish(answer)
    made = {
        **head,
        "content": [block_of(part) for part in parts.parts],
        **stop_of(answer, parts),
        "usage": usage_of(output),
        "metrics": metrics_of(answer),
    }
    if asked.trace:
        made["trace"] = await engine.trace(id)
    return Response(dumped(made), media_type="application/json")


@router.post("/v1/messages/count_tokens")
async def count_tokens(asked: PromptRequest, request: Request, who: Who) -> TokenCount:
    """The tokens that a conversation's prompt has, tools and all."""
    state = request.app.state
    engine: Engine = state.engine
    id = f"count-{secrets.token_hex(8)}"
    making = partial(_asked, asked, id, who, engine, state.settings)
    ask, _ = await beside_others(asked.tools, making)
    try:
        return TokenCount(input_tokens=len(await engine.tokenize(ask)))
    except ValueError as error:
        raise refused(error, type(asked).model_fields) from None


def _asked(
    asked: PromptRequest, id: str, who: Caller, engine: Engine, settings: ServerSettings
) -> tuple[Ask, Prepared]:
    """What the engine is asked, and what reads tool calls in its answer.

    Raises:
        ApiError: what is asked does not fit, or there is no such model.
    """
    card = engine.card
    try:
        turns = as_turns(asked.system, asked.messages)
        check_turns("messages", turns, settings)
        ask = asked.as_ask(
            id,
            turns,
            asked.sampling(),
            who,
            card,
            settings,
            default_mode=served_mode(asked.model, card, settings),
            streamed=isinstance(asked, MessagesRequest) and bool(asked.stream),
        )
        choice, parallel = anthropic_choice(asked.tool_choice)
        return offered(ask, anthropic_tools(asked.tools), choice, parallel, card)
    except ValueError as error:
        raise refused(error, type(asked).model_fields) from None
