"""What the server's process and the engine's say to each other."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from fastslow.output import Output, Piece
from fastslow.serve.api.engine import ModelCard


class Start(Struct, tag=True, array_like=True):
    """The first message: the fields of `EngineSettings`."""

    settings: dict[str, Any]


class StartAnswer(Struct, tag=True, array_like=True):
    """Begin to answer. `ask`: the fields of an `Ask`."""

    number: int  # the server's, for all messages about this answer
    ask: Any


class LeaveAnswer(Struct, tag=True, array_like=True):
    """Nobody reads this answer any more."""

    number: int


class Cancel(Struct, tag=True, array_like=True):
    number: int
    id: str


class StopThinking(Struct, tag=True, array_like=True):
    number: int
    id: str


class GetTrace(Struct, tag=True, array_like=True):
    number: int
    id: str


class GetStats(Struct, tag=True, array_like=True):
    number: int


class Tokenize(Struct, tag=True, array_like=True):
    number: int
    ask: Any


class Detokenize(Struct, tag=True, array_like=True):
    number: int
    tokens: list[int]


class GetTokenBytes(Struct, tag=True, array_like=True):
    number: int
    tokens: list[int]


class Ping(Struct, tag=True, array_like=True):
    """Whether the process lives, and its engine too."""

    number: int


class Drain(Struct, tag=True, array_like=True):
    """Take no more requests, and end once those that run are over, or the time is."""

    seconds: float


class Failure(Struct, array_like=True):
    """An error: the name of its kind, its sentence, and what some kinds have besides."""

    kind: str
    sentence: str
    outputs: list[Output] = []  # of a `GenerationError`
    retry_after: float = 0.0  # of `Busy`
    refused: bool = False  # of `NotReady`


class Ready(Struct, tag=True, array_like=True):
    """The model is loaded."""

    card: ModelCard


class NotLoaded(Struct, tag=True, array_like=True):
    """The model cannot be loaded; the process ends."""

    failure: Failure


class Answers(Struct, tag=True, array_like=True):
    """All that answers have come to since the last such message, so that the server wakes once.

    Attributes:
        pieces: by number, in the order in which they were made.
        over: numbers of answers that end behind these pieces; with what went wrong, or None.
    """

    pieces: list[tuple[int, Piece]]
    over: list[tuple[int, Failure | None]]


class CallResult(Struct, tag=True, array_like=True):
    """What a call gave: `Cancel` and those after it."""

    number: int
    value: Any
    failure: Failure | None = None


Call = Cancel | StopThinking | GetTrace | GetStats | Tokenize | Detokenize | GetTokenBytes | Ping
ToEngine = Start | StartAnswer | LeaveAnswer | Call | Drain
ToServer = Ready | NotLoaded | Answers | CallResult
