"""What the server's process and the engine's say to each other, as msgpack with a length before each message."""

from __future__ import annotations

import struct
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from fastslow.output import GenerationError, Output, Piece
from fastslow.serve.api.engine import Busy, ModelCard, NotReady

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
    """Begin to answer. `ask`: `GenerateRequest.to_fields()`."""

    number: int  # the server's, for all messages about this answer
    ask: Any


class LeaveAnswer(Struct, tag=True, array_like=True):
    """Nobody reads this answer any more."""

    number: int


class Call(Struct, tag=True, array_like=True):
    """Call a method of the engine: one of `CALLS`, `alive` or `report`. An object among the arguments is a request."""

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
    """All that answers have come to since the last such message, so that the server wakes once.

    Attributes:
        pieces: by number, in the order in which they were made.
        over: numbers of answers that end after these pieces; with what went wrong, or None.
    """

    pieces: list[tuple[int, Piece]]
    over: list[tuple[int, Failure | None]]


class CallResult(Struct, tag=True, array_like=True):
    """What a call gave."""

    number: int
    value: Any
    failure: Failure | None = None


ToEngine = Start | StartAnswer | LeaveAnswer | Call | Drain
ToServer = Ready | NotLoaded | Answers | CallResult


def failure_of(error: Exception) -> Failure:
    """As a message. A kind that is not known is a RuntimeError, whose sentence names it."""
    kind = next((kind for kind in KINDS if isinstance(error, kind)), None)
    if kind is None:
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
    """A message on its way."""
    data = bytearray(LENGTH.size)
    LENGTH.pack_into(data, 0, _write(message, data))
    return bytes(data)


def packed(message: Any) -> bytes:
    """A message for what keeps messages apart by itself; no length in front."""
    data = bytearray()
    _write(message, data)
    return bytes(data)


def _write(message: Any, data: bytearray) -> int:
    """Append a message to the data; returns its size in bytes."""
    start = len(data)
    try:
        _encoder.encode_into(message, data, start)
    except OverflowError:
        raise ValueError("a number in the request is outside of 64 bits") from None
    except UnicodeEncodeError as error:
        where = f"see its character {error.start + 1}"
        raise ValueError(f"a text in the request is not valid Unicode: {where}") from None
    except RecursionError:
        raise ValueError("the request is nested too deeply") from None
    size = len(data) - start
    if size > LONGEST:
        raise ValueError(f"the request has {size} bytes, at most {LONGEST} are possible")
    return size


class FrameReader(Generic[T]):
    """Makes messages of the bytes that come in.

    Args:
        kinds: the types of messages that may come.
    """

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
