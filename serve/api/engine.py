"""Contract between the server and an engine, whether it runs in this process or in another."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from typing_extensions import TypedDict  # pydantic reads that of Python 3.12 only

from fastslow.admission import Busy
from fastslow.output import Piece
from fastslow.serve.api.generate_request import GenerateRequest

__all__ = ["Busy", "Engine", "ModelCard", "NotReady"]  # Busy: HTTP 429, with its `retry_after`
CALLS = ("cancel", "stop_thinking", "trace", "stats", "tokenize", "detokenize", "token_bytes")
"""Methods of an engine that another process may call: those that return one value."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Facts of the model that clients may know."""

    name: str
    created: int  # seconds since 1970, when it was loaded
    context: int  # most tokens of prompt plus answer
    modes: Mapping[str, Mapping[str, Any]]  # presets, as the fields of a `Mode`
    units: str  # what a mode may run fewer of: "groups", "experts", or "" for a dense model
    most: int  # of these, in every layer
    thinks: bool  # it has thinking tags
    has_head: bool  # a trained draft head
    efforts: tuple[str, ...] = ()  # levels of `reasoning_effort` that the chat template knows
    # the template's variable that keeps thoughts of earlier turns, and the value that does; None: it has none
    keeps_thoughts: tuple[str, bool] | None = None
    device: str = "cpu"
    tool_format: str = "generic"  # a name of `engine.text.tool_formats`
    # its marks that are special tokens
    tool_tokens: Mapping[str, int] = field(default_factory=dict)
    # of its makers, see `model_sampling`
    sampling: Mapping[str, Any] = field(default_factory=dict)


class WarmPrefix(TypedDict):
    """A system prompt, or messages, that is read once and stays in the prefix cache."""

    name: str  # of the file, for messages
    prompt: list[dict[str, Any]]
    mode: str


class NotReady(RuntimeError):
    """The engine is not there: it starts, drains, or ended in the middle of a request. HTTP 503. replica: which of
    several engines had the request; "" where none had it. refused: this engine lives, and did not take the request;
    else it ended with it."""

    def __init__(self, message: str = "", replica: str = "", refused: bool = False) -> None:
        super().__init__(message)
        self.replica, self.refused = replica, refused


class Engine(Protocol):
    """Answers. All methods belong to one event loop."""

    @property
    def card(self) -> ModelCard:
        """Raises `NotReady` before the model is loaded."""

    @property
    def ready(self) -> bool:
        """True while it takes requests."""

    @property
    def why_not_ready(self) -> str:
        """Reason why it takes no requests, one sentence; "" while it is ready."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """The answer in pieces, in the order in which they are made; the last one has the `output`. With n above 1
        pieces of several answers mix; `Piece.index` says which. Whoever leaves the loop cancels.

        ValueError: one sentence about what does not fit; before the first piece. Busy, NotReady: see there.
        GenerationError: the engine failed on the request.
        """

    async def cancel(self, id: str) -> bool:
        """End a request with what it has. False: no such request runs or waits."""

    async def stop_thinking(self, id: str) -> bool:
        """Close the thought of a request now, so that it answers. False: as `cancel`, or it has no thought."""

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        """Return what each step of a request did, while it runs and for a while after; None: unknown."""

    async def stats(self) -> Mapping[str, Any]:
        """`EngineStats.to_dict()`."""

    async def tokenize(self, request: GenerateRequest) -> list[int]:
        """The token ids of a request's prompt, in its mode. ValueError: as `stream`."""

    async def detokenize(self, tokens: list[int]) -> str:
        """Their text, special tokens too. ValueError: an id is outside the vocabulary."""

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        """The bytes of each token, b"" outside the vocabulary; and whether answers show it: special tokens are
        marks, not text."""

    async def close(self, drain: float = 0.0) -> None:
        """Take no more requests, let those that run have `drain` seconds, then end."""


async def called(engine: Engine, method: str, arguments: Sequence[Any]) -> Any:
    """Call one of `CALLS` and return its result. ValueError: it is none of them; or as the method says."""
    if method not in CALLS:
        raise ValueError(f"an engine has no method {method!r} to be called")
    return await getattr(engine, method)(*arguments)


class CalledEngine(ABC):
    """The methods of an `Engine` that are `CALLS`, for an engine that is somewhere else: each is one `call`."""

    @abstractmethod
    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the engine itself; raises `NotReady` where it is not there."""

    async def cancel(self, id: str) -> bool:
        return bool(await self.call("cancel", id))

    async def stop_thinking(self, id: str) -> bool:
        return bool(await self.call("stop_thinking", id))

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        return cast("Mapping[str, Any] | None", await self.call("trace", id))

    async def stats(self) -> Mapping[str, Any]:
        return cast("Mapping[str, Any]", await self.call("stats"))

    async def tokenize(self, request: GenerateRequest) -> list[int]:
        return cast("list[int]", await self.call("tokenize", request))

    async def detokenize(self, tokens: list[int]) -> str:
        return str(await self.call("detokenize", tokens))

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        return [(data, shown) for data, shown in await self.call("token_bytes", list(tokens))]


class WrappedEngine(CalledEngine):
    """An `Engine` in front of another: all that a subclass does not override goes through."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def card(self) -> ModelCard:
        return self.engine.card

    @property
    def ready(self) -> bool:
        return self.engine.ready

    @property
    def why_not_ready(self) -> str:
        return self.engine.why_not_ready

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        return self.engine.stream(request)

    async def call(self, method: str, *arguments: Any) -> Any:
        return await called(self.engine, method, arguments)

    async def close(self, drain: float = 0.0) -> None:
        await self.engine.close(drain)


class StartedEngine(Protocol):
    """Part that has to be started before an engine answers, and may end for good."""

    gave_up: asyncio.Future[str]  # done with one sentence when it will not answer any more

    async def start(self) -> None:
        """Wait until the model is loaded. ValueError: one sentence about what does not fit. RuntimeError: it failed,
        or ended."""
