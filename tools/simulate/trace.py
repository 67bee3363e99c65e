"""A trace: which requests came when, what they shared and, if they were recorded, how long they took."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from fastslow.engine.params import Params, shown
from fastslow.tools.prompts import json_object, naming, text_lines

ALL = "all"  # what figures of all modes are called; no mode has this name
MOST_TOKENS = 10_000_000  # of a prompt or an answer

Name = Annotated[str, Field(max_length=200)]
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
PerStep = Annotated[float, Field(ge=1, le=1000)]
Milliseconds = Annotated[float, Field(ge=0.001, le=1e9)]
Pieces = tuple[tuple[Name, Tokens], ...]


class TracedRequest(Params):
    """A request of a trace. Requests of a mode share keys and values as far as the pieces that their prompts begin
    with are the same. A later prompt that continues a request begins with the pieces of its prompt, and then with a
    piece of its id."""

    arrival: Seconds  # from the trace's own zero
    mode: Annotated[Name, Field(min_length=1)]
    prompt_tokens: Tokens
    answer_tokens: Tokens
    id: Name = ""
    deep: bool = False  # whether it thinks
    prefix: Annotated[Pieces, Field(max_length=100_000)] = ()  # (name, tokens) of each piece
    latency_ms: Milliseconds | None = None  # its target
    tokens_per_step: PerStep | None = None  # that it got from a step; None = as usual for its mode
    rows_per_step: PerStep | None = None  # its last token and drafted ones; None = likewise
    # as measured: from its arrival to its first token and to its end; tokens of its prompt in a cache
    first_seconds: Seconds | None = None
    end_seconds: Seconds | None = None
    cached_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mode == ALL:
            raise ValueError(f"mode={ALL!r} names the figures of all modes: choose another name")
        if self.shared_tokens > self.prompt_tokens:
            raise ValueError(
                f"prefix has {self.shared_tokens} tokens, more than prompt_tokens={self.prompt_tokens}"
            )
        return self

    @property
    def shared_tokens(self) -> int:
        """Tokens of the prompt that other requests may share."""
        return sum(tokens for _, tokens in self.prefix)

    def text(self, answered: int = 0) -> Pieces:
        """The pieces of the prompt and of some tokens of the answer; the last one is the request's own."""
        own = self.prompt_tokens - self.shared_tokens + answered
        return (*self.prefix, (self.id, own)) if own else self.prefix


def read_trace(path: Path) -> list[TracedRequest]:
    """The requests of a file of JSON lines, by arrival; those without an id are numbered. ValueError: it cannot be
    read, or a line is wrong; one sentence with the line's number."""
    found: dict[str, TracedRequest] = {}
    for number, (place, line) in enumerate(text_lines(path, "trace"), 1):
        with naming(place):
            request = TracedRequest(**{"id": f"#{number}", **json_object(line)})
            if request.id in found:
                raise ValueError(f"id={shown(request.id)} names two requests of the trace")
        found[request.id] = request
    if not found:
        raise ValueError(f"{path} has no request")
    return sorted(found.values(), key=lambda request: request.arrival)


def write_trace(path: Path, requests: Iterable[TracedRequest]) -> None:
    """Write JSON lines that `read_trace` reads, without what is as usual."""
    with path.open("w", encoding="utf-8") as file:
        for request in requests:
            file.write(json.dumps(request.model_dump(exclude_defaults=True)) + "\n")
