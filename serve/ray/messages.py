"""What a replica and the server in front of it say to each other; each message is one bytes value."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from fastslow.output import Piece
from fastslow.serve.api.ask import Ask
from fastslow.serve.engines.process.frames import packed
from fastslow.serve.engines.process.link import as_fields
from fastslow.serve.engines.process.messages import Failure

T = TypeVar("T")


class Accepted(Struct, tag=True, array_like=True):
    """The first item of an answer, before the engine has begun it.

    Attributes:
        replica: its id, as routers know it.
    """

    replica: str


class Bunch(Struct, tag=True, array_like=True):
    """A later item: what the answer has come to since the one before.

    Attributes:
        failure: the answer ends behind these pieces, and this is why.
    """

    pieces: list[Piece]
    failure: Failure | None = None


class Returned(Struct, array_like=True):
    """What a call gave, or why it failed.

    Attributes:
        replica: the id of who answers.
    """

    replica: str
    value: Any
    failure: Failure | None = None


_item: msgspec.msgpack.Decoder[Accepted | Bunch] = msgspec.msgpack.Decoder(Accepted | Bunch)
_returned: msgspec.msgpack.Decoder[Returned] = msgspec.msgpack.Decoder(Returned)
_fields: msgspec.msgpack.Decoder[dict[str, Any]] = msgspec.msgpack.Decoder(dict[str, Any])


def item_of(data: bytes) -> Accepted | Bunch:
    """An item of an answer."""
    return _item.decode(data)


def returned_of(data: bytes) -> Returned:
    """The result of a call."""
    return _returned.decode(data)


def packed_ask(ask: Ask) -> bytes:
    """An ask on its way.

    Raises:
        ValueError: a client's value cannot be sent.
    """
    return packed(as_fields(ask))


def ask_of(data: bytes) -> Ask:
    """The ask again."""
    return Ask(**_fields.decode(data))
