"""/v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Request, Response

from fastslow.output import Completion, Output
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
from fastslow.serve.http.token_table import TokenTable
from fastslow.serve.observe.answer_metrics import metrics_of
from fastslow.serve.openai.chat_events import ChatEvents
from fastslow.serve.openai.chat_schema import ChatCompletion, ChatRequest
from fastslow.serve.openai.chunks import ChunkFrame
from fastslow.serve.openai.logprobs import chat_logprobs, tokens_in
from fastslow.serve.openai.messages import as_turns
from fastslow.serve.openai.prompt_logprobs import prompt_logprobs
from fastslow.serve.openai.usage import FINISH, usage_of
from fastslow.serve.tool_calls.chat import Parsers, beside_others, chat_tools

router = json_router()


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED)
async def chat_completions(
    asked: ChatRequest, request: Request, who: Annotated[Caller, Depends(caller)]
) -> Response:
    """Answer a chat."""
    state = request.app.state
    engine: Engine = state.engine
    settings: ServerSettings = state.settings
    id = f"chatcmpl-{secrets.token_hex(16)}"
    try:
        making = partial(_ask, asked, id, who, engine, settings)
        ask, parsers = await beside_others(asked.tools, making)
    except ValueError as error:
        raise refused(error, type(asked).model_fields) from None
    created, ids = int(time.time()), [id, request_id(request.scope)]
    shown = settings.thoughts_as if asked.shows_thought else ()
    if asked.stream:
        options = asked.stream_options
        usage = options is not None and bool(options.include_usage)
        frame = ChunkFrame(id, "chat.completion.chunk", created, engine.card.name, usage)
        events = ChatEvents(
            frame,
            state.tokens,
            asked.n or 1,
            shown,
            ask.sampling.get("logprobs"),
            options is not None and bool(options.include_sources),
            usage,
            parsers,
        )
        return EventStream(engine, [ask], events, settings).known_as(state.requests, ids, who)
    with state.requests.running(ids, [id], who):
        output = await while_connected(request.receive, whole(engine, ask))
    await _learn(state.tokens, output)
    made = {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": engine.card.name,
        "choices": [
            _choice(i, one, shown, ask, state.tokens, parsers)
            for i, one in enumerate(output.choices)
        ],
        "usage": usage_of([output]),
        "metrics": metrics_of(output.choices[0]),
    }
    if output.prompt_logprobs is not None:
        made["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, state.tokens)
    if asked.trace:
        made["trace"] = await engine.trace(id)
    return Response(dumped(made), media_type="application/json")


def _ask(
    asked: ChatRequest, id: str, who: Caller, engine: Engine, settings: ServerSettings
) -> tuple[Ask, Parsers | None]:
    """What the engine is asked, and what reads tool calls in its answers.

    Raises:
        ValueError: what is asked does not fit.
        ApiError: there is no such model.
    """
    card = engine.card
    named = served_mode(asked.model, card, settings)
    asked.check_n(1, settings)
    asked.check_stream()
    turns = as_turns(asked.messages)
    check_turns("messages", turns, settings)
    ask = asked.as_ask(
        id,
        turns,
        asked.sampling(),
        who,
        card,
        settings,
        default_mode=named,
        prediction=None if asked.prediction is None else asked.prediction.text,
        streamed=bool(asked.stream),
    )
    parallel = asked.parallel_tool_calls is not False
    return chat_tools(ask, asked.tools, asked.tool_choice, parallel, card)


async def _learn(table: TokenTable, output: Output) -> None:
    for choice in output.choices:
        if choice.logprobs is not None:
            await table.learn(tokens_in(choice.logprobs, choice.token_ids))
    await table.learn(tokens_in(output.prompt_logprobs))


def _choice(
    index: int,
    answer: Completion,
    thoughts_as: tuple[str, ...],
    ask: Ask,
    table: TokenTable,
    parsers: Parsers | None,
) -> dict[str, Any]:
    content, finish = answer.text, FINISH[answer.finish_reason]
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if parsers is not None:
        parser = parsers()
        content = parser.push(answer.text)[0] + parser.finish()[0]
        if parser.calls:
            message |= {"content": content or None, "tool_calls": parser.calls}
            finish = "tool_calls" if finish == "stop" else finish
    if answer.reasoning:
        message |= dict.fromkeys(thoughts_as, answer.reasoning)
    top = ask.sampling.get("logprobs")
    logprobs = None
    if answer.logprobs is not None:
        entries = chat_logprobs(answer.token_ids, answer.logprobs, top or 0, table)
        logprobs = {"content": entries, "refusal": None}
    made = {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": finish,
        "stop_reason": answer.stop_reason,
    }
    return made if ask.sampling.get("n", 1) == 1 else {**made, "metrics": metrics_of(answer)}
