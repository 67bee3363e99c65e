"""/v1/completions."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any

from fastapi import Depends, Request, Response

from fastslow.output import Completion, Output
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.caller import Caller, caller
from fastslow.serve.api.engine import Engine
from fastslow.serve.api.errors import refused
from fastslow.serve.api.model_name import served_mode
from fastslow.serve.api.settings import ServerSettings
from fastslow.serve.http.answer import all_whole, while_connected
from fastslow.serve.http.body import json_router
from fastslow.serve.http.json_text import dumped
from fastslow.serve.http.request_id import request_id
from fastslow.serve.http.sse import STREAMED, EventStream
from fastslow.serve.http.token_table import TokenTable
from fastslow.serve.observe.answer_metrics import metrics_of
from fastslow.serve.openai.chunks import ChunkFrame
from fastslow.serve.openai.completion_events import CompletionEvents
from fastslow.serve.openai.completions_schema import CompletionRequest, TextCompletion, as_prompts
from fastslow.serve.openai.logprobs import TextLogprobsWriter, tokens_in
from fastslow.serve.openai.prompt_logprobs import prompt_logprobs
from fastslow.serve.openai.usage import FINISH, usage_of

router = json_router()


@router.post("/v1/completions", response_model=TextCompletion, responses=STREAMED)
async def completions(
    asked: CompletionRequest, request: Request, who: Annotated[Caller, Depends(caller)]
) -> Response:
    """Go on from a text, or from several."""
    state = request.app.state
    engine: Engine = state.engine
    settings: ServerSettings = state.settings
    id = f"cmpl-{secrets.token_hex(16)}"
    try:
        asks = _asks(asked, id, who, engine, settings)
    except ValueError as error:
        raise refused(error, type(asked).model_fields) from None
    created, ids, names = int(time.time()), [id, request_id(request.scope)], [a.id for a in asks]
    echoes = await _echoes(asked, asks, engine)
    if asked.stream:
        options = asked.stream_options
        usage = options is not None and bool(options.include_usage)
        frame = ChunkFrame(id, "text_completion", created, engine.card.name, usage)
        sources = options is not None and bool(options.include_sources)
        events = CompletionEvents(
            frame, state.tokens, asked.n or 1, asked.logprobs, sources, usage, echoes
        )
        return EventStream(engine, asks, events, settings).known_as(state.requests, ids, who)
    with state.requests.running(ids, names, who):
        outputs = await while_connected(request.receive, all_whole(engine, asks))
    choices: list[dict[str, Any]] = []
    for output, echo in zip(outputs, echoes):
        await state.tokens.learn(tokens_in(output.prompt_logprobs, output.prompt_token_ids))
        for answer in output.choices:
            await state.tokens.learn(tokens_in(answer.logprobs, answer.token_ids))
            choices.append(_choice(len(choices), asked, output, answer, echo, state.tokens))
            if len(asks) * (asked.n or 1) > 1:
                choices[-1]["metrics"] = metrics_of(answer)
    made = {
        "id": id,
        "object": "text_completion",
        "created": created,
        "model": engine.card.name,
        "choices": choices,
        "usage": usage_of(outputs),
        "metrics": metrics_of(outputs[0].choices[0]),
    }
    if asked.trace:
        made["trace"] = [await engine.trace(name) for name in names]
    return Response(dumped(made), media_type="application/json")


def _asks(
    asked: CompletionRequest, id: str, who: Caller, engine: Engine, settings: ServerSettings
) -> list[Ask]:
    """What the engine is asked: once for each prompt.

    Raises:
        ValueError: what is asked does not fit.
        ApiError: there is no such model.
    """
    card = engine.card
    named = served_mode(asked.model, card, settings)
    prompts = as_prompts(asked.prompt, settings)
    asked.check_n(len(prompts), settings)
    asked.check_stream()
    sampling = asked.sampling()
    names = [id] if len(prompts) == 1 else [f"{id}-{place}" for place in range(len(prompts))]
    return [
        asked.as_ask(
            name,
            prompt,
            sampling,
            who,
            card,
            settings,
            default_mode=named,
            streamed=bool(asked.stream),
            allow_special=asked.allow_special is True,
            defaults={**settings.sampling, "max_tokens": settings.completion_tokens},
        )
        for name, prompt in zip(names, prompts)
    ]


async def _echoes(asked: CompletionRequest, asks: list[Ask], engine: Engine) -> list[str]:
    """What stands in front of each answer: the prompt, where that is asked for.

    Raises:
        ApiError: a token is outside the vocabulary.
    """
    if not asked.echo:
        return [""] * len(asks)
    prompts: list[Any] = [ask.prompt for ask in asks]
    try:
        return [p if isinstance(p, str) else await engine.detokenize(list(p)) for p in prompts]
    except ValueError as error:
        raise refused(error) from None


def _choice(
    index: int,
    asked: CompletionRequest,
    output: Output,
    answer: Completion,
    echo: str,
    table: TokenTable,
) -> dict[str, Any]:
    logprobs = None
    if answer.logprobs is not None:
        writer = TextLogprobsWriter(table, asked.logprobs or 0)
        ids, places = answer.token_ids, [*answer.logprobs]
        if echo:
            ids = [*output.prompt_token_ids, *ids]
            places = [*(output.prompt_logprobs or []), *places]  # type: ignore[list-item]
        logprobs = writer.write(ids, places)
    made: dict[str, Any] = {
        "index": index,
        "text": echo + answer.text,
        "logprobs": logprobs,
        "finish_reason": FINISH[answer.finish_reason],
        "stop_reason": answer.stop_reason,
    }
    if answer.reasoning:
        made["reasoning"] = answer.reasoning
    if output.prompt_logprobs is not None and asked.prompt_logprobs is not None:
        made["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, table)
    return made
