"""A server that speaks the page's protocol without a model: long answers, slow ones, errors, hostile texts.

What a chat gets is said by the first word of its last message, see `script`. For people:
`python tests/support/fake_chat_server.py 8090`
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fake_chat_texts import ANSWER, CODE, HOSTILE, THOUGHT, prose, tokens_of
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fastslow.serve.page.route import router

MODES = {
    "fast": {"description": "a quarter of the expert groups, no thinking: low latency"},
    "deep": {"description": "all expert groups, thinking on"},
    "auto": {"description": "fast or deep, by what is asked; metrics.decision says why"},
}
CARD = {"id": "fake-moge", "object": "model", "modes": MODES, "has_head": True}
SOURCES = [
    "target",
    "suffix",
    "suffix",
    "target",
    "head",
    "head",
    "head",
    "target",
    "target",
    "prediction",
]


@dataclass
class Answer:
    """What one chat gets."""

    text: str
    thought: str = ""
    rate: float = 400.0  # tokens a second
    breaks: str = ""  # "off": the stream ends in the middle; "error": an error event comes there
    stopped: bool = False
    thinking_stopped: bool = False


@dataclass
class FakeEngine:
    """What runs, and its figures, which change with each call unless they are given."""

    figures: dict[str, Any] = field(default_factory=dict)
    calls: int = 0  # of `stats`
    answers: dict[str, Answer] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of all chats, as they came
    key: str | None = None
    busy: int = 0  # so many more chats are refused

    async def stats(self) -> dict[str, Any]:
        if not self.figures:
            self.calls += 1
            return figures_at(self.calls)
        return self.figures


def figures_at(call: int) -> dict[str, Any]:
    """Those of a server with some load, at the `call`-th look."""
    wave = 0.5 + 0.5 * math.sin(call / 9)
    used = int(120 + 260 * wave)
    suffix, head = 400 * call, 250 * max(0, call - 20)
    requests = {"fast": 31 * call, "deep": 12 * call, "auto": 7 * call}
    first = {"fast": 0.04, "deep": 0.31, "auto": 0.18}
    return {
        "running": int(2 + 6 * wave),
        "waiting": int(max(0, 14 * wave - 9)),
        "steps": 300 * call,
        "tokens": int(900 * call - 900 * math.cos(call / 9)),
        "prompt_tokens": 4000 * call,
        "cached_tokens": int(2600 * call - 6000 * math.cos(call / 14)) + 6000,
        "pages": 1024,
        "pages_used": used,
        "pages_cached": min(1024 - used, 6 * call),
        "pages_free": max(0, 1024 - used - 6 * call),
        "ended": {"stop": 44 * call, "length": 4 * call, "cancelled": 2 * call},
        "drafters": {
            "suffix": {
                "offered": suffix,
                "accepted": int(suffix * 0.46 - 500 * math.cos(call / 7)),
            },
            "head": {"offered": head, "accepted": int(head * 0.71)},
        },
        "modes": {
            name: {
                "requests": count,
                "tokens": 30 * count,
                "steps": 12 * count,
                "drafted": 40 * count,
                "accepted": 18 * count,
                "prompt_tokens": 90 * count,
                "cached_tokens": 61 * count,
                "first_token": {"count": count, "seconds": first[name] * count},
            }
            for name, count in requests.items()
        },
    }


def script(message: str, mode: str) -> Answer:
    """The answer that the first word of a message asks for."""
    word, *rest = message.split()
    thought = "" if mode == "fast" else THOUGHT
    match word:
        case "long":
            return Answer(prose(int(rest[0])), rate=float(rest[1]))
        case "wall":
            return Answer(prose(int(rest[0])).replace("\n", " "), rate=float(rest[1]))
        case "code":
            return Answer(CODE, rate=2000)
        case "slow":
            return Answer(prose(400), rate=20)
        case "think":
            return Answer("So it is.", thought=prose(600), rate=40)
        case "hostile":
            return Answer(HOSTILE, thought=HOSTILE)
        case "off" | "error":
            return Answer(prose(60), breaks=word)
        case "echo":
            return Answer(" ".join(rest), thought=thought)
    return Answer(ANSWER, thought=thought)


def create_fake(engine: FakeEngine) -> FastAPI:
    """The application: the real page and its figures, in front of made-up answers."""
    app = FastAPI()
    app.state.engine = engine
    app.include_router(router)
    ids = itertools.count(1)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        if engine.key and request.headers.get("authorization") != f"Bearer {engine.key}":
            return refused(401, "an API key is needed")
        return JSONResponse({"object": "list", "data": [CARD]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        if engine.key and request.headers.get("authorization") != f"Bearer {engine.key}":
            return refused(401, "an API key is needed")
        body = await request.json()
        engine.bodies.append(body)
        if engine.busy:
            engine.busy -= 1
            return refused(429, "the queue of 64 requests is full", {"Retry-After": "2"})
        message = body["messages"][-1]["content"]
        if message.startswith("wrong"):
            return refused(400, "temperature=1000 must be at most 100")
        name = f"chatcmpl-{next(ids)}"
        answer = engine.answers[name] = script(message, body.get("mode", "deep"))
        events = stream(name, answer, body.get("mode", "deep"))
        return StreamingResponse(events, media_type="text/event-stream")

    @app.delete("/v1/requests/{name}")
    async def cancel(name: str) -> Response:
        if name not in engine.answers:
            return refused(404, "no such request")
        engine.answers[name].stopped = True
        return JSONResponse({"id": name, "done": True})

    @app.post("/v1/requests/{name}/stop_thinking")
    async def stop_thinking(name: str) -> Response:
        if name not in engine.answers:
            return refused(404, "no such request")
        engine.answers[name].thinking_stopped = True
        return JSONResponse({"id": name, "done": True})

    return app


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None}}
    return JSONResponse(body, status, headers)


async def stream(name: str, answer: Answer, mode: str) -> AsyncIterator[str]:
    """The events of an answer: what is due every few milliseconds, a chunk for each step."""
    thought, text = tokens_of(answer.thought), tokens_of(answer.text)
    sources = itertools.cycle(SOURCES)
    sent, start, tokens = 0, time.monotonic(), [("reasoning_content", t) for t in thought]
    tokens += [("content", t) for t in text]
    ended = "model" if thought else None
    while sent < len(tokens) and not answer.stopped:
        if answer.thinking_stopped and tokens[sent][0] == "reasoning_content":
            tokens, ended = tokens[:sent] + [("content", t) for t in text], "caller"
        if answer.breaks and sent > 30:
            if answer.breaks == "error":
                yield event({"error": {"message": "the engine ended in the middle of the request"}})
            return
        due = min(len(tokens), int((time.monotonic() - start) * answer.rate) + 1)
        events = []
        while sent < due:
            kind, step, names = tokens[sent][0], [], []
            while sent < due and tokens[sent][0] == kind:
                step.append(tokens[sent][1])
                names.append(next(sources))
                sent += 1
                if names[-1] == "target":
                    break
            choice = {
                "index": 0,
                "delta": {
                    kind: "".join(step),
                    "token_ids": [5] * len(step),
                    "token_texts": step,
                    "sources": names,
                },
                "finish_reason": None,
            }
            events.append(event({"id": name, "choices": [choice]}))
        yield "".join(events)
        await asyncio.sleep(max(0.004, 1 / answer.rate))
    yield ending(name, answer, mode, sent, min(sent, len(thought)), ended)


def ending(name: str, answer: Answer, mode: str, sent: int, thought: int, ended: str | None) -> str:
    """The last events: why it ended, the usage, the metrics."""
    ran = ("deep" if thought else "fast") if mode == "auto" else mode
    metrics = {
        "mode": ran,
        "decision": "the question asks for a proof" if mode == "auto" else "",
        "drafter": "suffix+head",
        "by_drafter": {
            "suffix": {"drafted": 96, "accepted": 44},
            "head": {"drafted": 61, "accepted": 43},
        },
        "ttft": 0.042,
        "tokens": sent,
        "tokens_per_step": 2.5,
        "tokens_per_second": answer.rate,
        "acceptance": [0.84, 0.61, 0.43, 0.2],
        "cached_tokens": 96,
        "prompt_tokens": 120,
        "thinking_tokens": thought,
        "thinking_ended": ended,
    }
    usage = {
        "prompt_tokens": 120,
        "completion_tokens": sent,
        "prompt_tokens_details": {"cached_tokens": 96},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }
    reason = "cancelled" if answer.stopped else "stop"
    last = {"index": 0, "delta": {}, "finish_reason": reason}
    return (
        event({"id": name, "choices": [last]})
        + event({"id": name, "choices": [], "usage": usage, "metrics": metrics})
        + "data: [DONE]\n\n"
    )


def event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


if __name__ == "__main__":
    uvicorn.run(create_fake(FakeEngine()), port=int(sys.argv[1]), log_level="warning")
