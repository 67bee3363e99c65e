"""/v1/responses. Nothing is kept: an answer cannot be fetched again, nor be gone on from by its id."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Annotated

from fastapi import Depends, Request, Response

from fastslow.engine.params import shown
from fastslow.serve.api.answer_parts import AnswerParts
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.caller import Caller, caller
from fastslow.serve.api.engine import Engine
from fastslow.serve.api.errors import ApiError, refused
from fastslow.serve.api.model_name import served_mode
from fastslow.serve.api.settings import ServerSettings
from fastslow.serve.api.turns import check_turns
from fastslow.serve.http.answer import while_connected, whole
from fastslow.serve.http.body import json_router
from fastslow.serve.http.json_text import dumped
from fastslow.serve.http.request_id import request_id
from fastslow.serve.http.sse import STREAMED, EventStream
from fastslow.serve.openai.response_events import ResponseEvents
from fastslow.serve.openai.response_input import as_turns
from fastslow.serve.openai.response_object import ended, head_of
from fastslow.serve.openai.responses_schema import ResponseObject, ResponsesRequest
from fastslow.serve.tool_calls.chat import beside_others, offered
from fastslow.serve.tool_calls.prepare import Prepared
from fastslow.serve.tool_calls.protocols import openai_choice, openai_tools

router = json_router()
Who = Annotated[Caller, Depends(caller)]


@router.post("/v1/responses", response_model=ResponseObject, responses=STREAMED)
async def responses(asked: ResponsesRequest, request: Request, who: Who) -> Response:
    """Answer a conversation."""
    state = request.app.state
    engine: Engine = state.engine
    settings: ServerSettings = state.settings
    id = f"resp_{secrets.token_hex(16)}"
    try:
        making = partial(_ask, asked, id, who, engine, settings)
        ask, tools = await beside_others(asked.tools, making)
    except ValueError as error:
        raise refused(error, type(asked).model_fields) from None
    ids, head = [id, request_id(request.scope)], head_of(id, engine.card.name, asked)
    parts = AnswerParts(tools.parser(), not asked.hides_thought)
    if asked.stream:
        events = ResponseEvents(head, parts)
        return EventStream(engine, [ask], events, settings).known_as(state.requests, ids, who)
    with state.requests.running(ids, [id], who):
        output = await while_connected(request.receive, whole(engine, ask))
    parts.finish(output.choices[0])
    made = ended(head, parts, output)
    if asked.trace:
        made["trace"] = await engine.trace(id)
    return Response(dumped(made), media_type="application/json")


@router.get("/v1/responses/{id}")
async def get_response(id: str, who: Who) -> None:
    """There is none to be fetched."""
    raise _not_kept(id)


@router.get("/v1/responses/{id}/input_items")
async def get_input_items(id: str, who: Who) -> None:
    """There are none to be fetched."""
    raise _not_kept(id)


@router.post("/v1/responses/{id}/cancel")
async def cancel_response(id: str, who: Who) -> None:
    """None runs in the background; DELETE /v1/requests/{id} ends one that a client waits for."""
    raise _not_kept(id)


@router.delete("/v1/responses/{id}")
async def delete_response(id: str, who: Who) -> None:
    """There is none to be deleted."""
    raise _not_kept(id)


def _not_kept(id: str) -> ApiError:
    said = f"response {shown(id)} is not here: this server keeps no answers"
    return ApiError(404, said, param="id", code="not_found")


def _ask(
    asked: ResponsesRequest, id: str, who: Caller, engine: Engine, settings: ServerSettings
) -> tuple[Ask, Prepared]:
    """What the engine is asked, and what reads tool calls in its answer.

    Raises:
        ValueError: what is asked does not fit.
        ApiError: there is no such model.
    """
    card = engine.card
    named = served_mode(asked.model, card, settings)
    asked.check()
    turns = as_turns(asked.instructions, asked.input)
    check_turns("input", turns, settings)
    ask = asked.as_ask(
        id,
        turns,
        asked.sampling(),
        who,
        card,
        settings,
        default_mode=named,
        streamed=bool(asked.stream),
    )
    parallel = asked.parallel_tool_calls is not False
    choice = openai_choice(asked.tool_choice)
    return offered(ask, openai_tools(asked.tools), choice, parallel, card)
