"""The one body of the routes that answer prompts: what a client wants becomes requests, and outputs its answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

from fastapi import Request, Response

from fastslow.engine.text.tool_formats import BY_NAME, ToolCalls
from fastslow.output import Completion, Output
from fastslow.serve.api.engine import Engine
from fastslow.serve.api.errors import fitting
from fastslow.serve.api.fields import SharedFields, served_mode
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Caller
from fastslow.serve.api.turns import check_turns
from fastslow.serve.http.answer import Events, EventStream, all_whole, dumped, while_connected
from fastslow.serve.http.middleware import request_id
from fastslow.tool_calls.offered import Tool, ToolChoice
from fastslow.tool_calls.prepare import ToolSupport

B = TypeVar("B", bound=SharedFields)


class ProtocolAnswer(Events, Generic[B]):
    """An answer in the words of one protocol: of what it is made, and how it is written, whole or as events. body:
    what the client sent. who: the client. state: of the application. id: of the answer, by which the client may
    cancel it."""

    prefix: ClassVar[str]  # of the ids

    def __init__(self, body: B, who: Caller, state: Any) -> None:
        self.body, self.who = body, who
        self.engine: Engine = state.engine
        self.settings, self.tokens = state.settings, state.tokens
        self.id = f"{self.prefix}{secrets.token_hex(16)}"
        self.created = int(time.time())
        self.card = self.engine.card
        self.mode = served_mode(body.model, self.card, self.settings)

    def request(self, prompt: Any, **options: Any) -> GenerateRequest:
        """Make the engine's request for one prompt."""
        own = {"default_mode": self.mode, "streamed": bool(getattr(self.body, "stream", False))}
        options = {"id": self.id, **own, **options}
        return self.body.as_request(prompt, self.who, self.card, self.settings, **options)

    def chat(
        self,
        field: str,
        turns: list[dict[str, Any]],
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        **options: Any,
    ) -> tuple[GenerateRequest, ToolSupport]:
        """The same for a chat with tools; `field`: which holds it."""
        check_turns(field, turns, self.settings)
        request = self.request(turns, **options)
        calls = ToolCalls(BY_NAME[self.card.tool_format], self.card.tool_tokens)
        support = ToolSupport(tools, choice, parallel, calls, request.sampling.get("grammar"))
        made = request.options.with_tools(support.sampling, support.variables)
        return replace(request, options=made), support

    @abstractmethod
    def requests(self) -> list[GenerateRequest]:
        """A request for each prompt. With tools this runs in a thread."""

    async def prepare(self, requests: Sequence[GenerateRequest]) -> None:
        """Ask the engine what must be known before the answer; raises ValueError as `requests`."""

    @abstractmethod
    async def whole(self, outputs: Sequence[Output]) -> dict[str, Any]:
        """The answer that is not streamed."""

    def traced(self, traces: list[Any]) -> Any:
        """The traces of all prompts, as `trace` of the answer."""
        return traces[0]


async def answer(kind: type[ProtocolAnswer[B]], body: B, request: Request, who: Caller) -> Response:
    """Answer a request, streamed where it wants that. ApiError: the request does not fit, or the client left. Busy,
    NotReady, GenerationError: as `Engine.stream`."""
    state = request.app.state
    made = kind(body, who, state)
    requests = await checked(made)
    ids = [made.id, request_id(request.scope)]
    if getattr(body, "stream", False):
        return EventStream(state, requests, made, ids, who)
    with state.requests.running(ids, [each.id for each in requests], who):
        outputs = await while_connected(request.receive, all_whole(state, requests))
    found = await made.whole(outputs)
    if body.trace:
        found["trace"] = made.traced([await made.engine.trace(each.id) for each in requests])
    return Response(dumped(found), media_type="application/json")


async def checked(made: ProtocolAnswer[B]) -> list[GenerateRequest]:
    """The requests of an answer. Schemas of tools may take a second to look at: that is done in a thread, and other
    requests run meanwhile."""
    with fitting(type(made.body).model_fields):
        has_tools = bool(getattr(made.body, "tools", None))
        requests = await asyncio.to_thread(made.requests) if has_tools else made.requests()
        await made.prepare(requests)
    return requests


def metrics_of(choice: Completion) -> dict[str, Any]:
    """Return the `metrics` of an answer, the same in every protocol, and its `finish_reason`."""
    made = choice.metrics.to_dict()
    del made["runs"]  # an entry for each step: the trace has them
    return {"finish_reason": choice.finish_reason, **made}
