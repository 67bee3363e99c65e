"""Messages between the server's process and the engine's, as msgpack with a length before each message."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
from loguru import logger
from msgspec import Struct

from fastslow.output import GenerationError, Output, Piece
from fastslow.request.options import GenerateOptions
from fastslow.serve.api.engine import Busy, ModelCard, NotReady
from fastslow.serve.api.generate_request import GenerateRequest

KINDS: tuple[type[Exception], ...] = (
    *(GenerationError, Busy, NotReady, TimeoutError, ValueError, RuntimeError),
)
MORE = ("outputs", "retry_after", "refused")  # what some kinds have besides their sentence
LENGTH = struct.Struct(">I")
LONGEST = 2**28  # bytes of a message
T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


class Start(Struct, tag=True, array_like=True):
    """The first message: the fields of `EngineSettings`."""

    settings: dict[str, Any]


class StartAnswer(Struct, tag=True, array_like=True):
    """Begin to answer."""

    number: int  # the server's, for all messages about this answer
    ask: Any  # of `fields_of`

    @property
    def request(self) -> GenerateRequest:
        """ValueError: an option does not fit."""
        return request_of(self.ask)


class LeaveAnswer(Struct, tag=True, array_like=True):
    """Nobody reads this answer any more."""

    number: int


class Call(Struct, tag=True, array_like=True):
    """Call a method of the engine: one of `CALLS`, `report`, or `alive`, which gives the engine's figures, or None
    where it broke. The arguments are of `plain`."""

    number: int
    method: str
    arguments: list[Any]


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
    """All that answers have come to since the last such message, so that the server wakes once."""

    pieces: list[tuple[int, Piece]]  # by number, in the order in which they were made
    over: list[tuple[int, Failure | None]]  # answers that end after these pieces, and why


class CallResult(Struct, tag=True, array_like=True):
    """Result of a `Call`: its value, or its failure."""

    number: int
    value: Any
    failure: Failure | None = None


ToEngine = Start | StartAnswer | LeaveAnswer | Call | Drain
ToServer = Ready | NotLoaded | Answers | CallResult


def fields_of(request: GenerateRequest) -> Any:
    """A request as plain JSON values. ValueError: a client's value is nested too deeply."""
    fields = {name: getattr(request, name) for name in request.__slots__}
    try:
        return msgspec.to_builtins(fields | {"options": request.options.given()})
    except RecursionError:
        raise ValueError("the request is nested too deeply") from None


def request_of(fields: Mapping[str, Any]) -> GenerateRequest:
    """The request again, in the other process. ValueError: an option does not fit."""
    return GenerateRequest(**{**fields, "options": GenerateOptions(**fields["options"])})


def plain(arguments: Iterable[Any]) -> list[Any]:
    """Arguments of a method of `Engine`, as messages hold them."""
    return [fields_of(one) if isinstance(one, GenerateRequest) else one for one in arguments]


def arguments_of(values: Iterable[Any]) -> list[Any]:
    """The arguments again. An object among them is a request."""
    return [request_of(one) if isinstance(one, dict) else one for one in values]


def failure_of(error: Exception, what: str = "a request failed") -> Failure:
    """As a message. A kind that is not known is logged; it becomes a RuntimeError, whose sentence names it."""
    kind = next((kind for kind in KINDS if isinstance(error, kind)), None)
    if kind is None:
        logger.opt(exception=error).error(what)
        return Failure(RuntimeError.__name__, f"{type(error).__name__}: {error}")
    more = {name: value for name in MORE if (value := getattr(error, name, None)) is not None}
    return Failure(kind.__name__, str(error), **more)


def error_of(failure: Failure) -> Exception:
    """The error again."""
    match failure.kind:
        case "GenerationError":
            return GenerationError(failure.sentence, failure.outputs)
        case "Busy":
            return Busy(failure.sentence, failure.retry_after)
        case "NotReady":
            return NotReady(failure.sentence, refused=failure.refused)
    kinds = {kind.__name__: kind for kind in KINDS}
    return kinds.get(failure.kind, RuntimeError)(failure.sentence)


def frame(message: Any) -> bytes:
    """A message on its way: with its length in front. ValueError: as `packed` says, or it is too long."""
    data = packed(message)
    if len(data) > LONGEST:
        raise ValueError(f"it has {len(data)} bytes; a message has at most {LONGEST}")
    return LENGTH.pack(len(data)) + data


def packed(message: Any) -> bytes:
    """A message for what keeps messages apart by itself. ValueError: a client's value cannot be sent."""
    try:
        return _encoder.encode(message)
    except OverflowError:
        raise ValueError("a number in the request is outside of 64 bits") from None
    except UnicodeEncodeError as error:
        where = f"see its character {error.start + 1}"
        raise ValueError(f"a text in the request is not valid Unicode: {where}") from None
    except RecursionError:
        raise ValueError("the request is nested too deeply") from None


class FrameReader(Generic[T]):
    """Makes messages of the bytes that come in. kinds: the types that may come."""

    def __init__(self, kinds: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kinds)
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """The messages that are whole now."""
        self._rest += data
        found, start, end = [], 0, len(self._rest)
        with memoryview(self._rest) as view:
            while end - start >= LENGTH.size:
                (size,) = LENGTH.unpack_from(view, start)
                if size > LONGEST:
                    raise ValueError(f"a message of {size} bytes: at most {LONGEST} are possible")
                first = start + LENGTH.size
                if end - first < size:
                    break
                with view[first : first + size] as part:
                    found.append(self._decoder.decode(part))
                start = first + size
        del self._rest[:start]
        return found
