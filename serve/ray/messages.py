"""What a replica and the server in front of it say to each other; each message is one bytes value."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from fastslow.output import Piece
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.messages import Failure, error_of, failure_of, packed

MARK = re.compile(r"\[fastslow-failure:([A-Za-z0-9_=-]+)\]")


class Accepted(Struct, tag=True, array_like=True):
    """The first item of an answer, before the engine has begun it.

    Attributes:
        replica: its id, as routers know it.
    """

    replica: str


class Bunch(Struct, tag=True, array_like=True):
    """A later item: what the answer has come to since the item before.

    Attributes:
        failure: the answer ends after these pieces, and this is why.
    """

    pieces: list[Piece]
    failure: Failure | None = None


class Returned(Struct, array_like=True):
    """What a call gave, or why it failed.

    Attributes:
        replica: the id of the replica that answers.
    """

    replica: str
    value: Any
    failure: Failure | None = None


_item: msgspec.msgpack.Decoder[Accepted | Bunch] = msgspec.msgpack.Decoder(Accepted | Bunch)
_returned: msgspec.msgpack.Decoder[Returned] = msgspec.msgpack.Decoder(Returned)
_list: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(list[Any])


def item_of(data: bytes) -> Accepted | Bunch:
    """An item of an answer."""
    return _item.decode(data)


def returned_of(data: bytes) -> Returned:
    """The result of a call."""
    return _returned.decode(data)


def packed_arguments(arguments: Sequence[Any]) -> bytes:
    """The arguments of a method of `Engine`; a request is the first one.

    Raises:
        ValueError: a client's value cannot be sent.
    """
    return packed([_plain(one) for one in arguments])


def _plain(argument: Any) -> Any:
    return argument.to_fields() if isinstance(argument, GenerateRequest) else argument


def arguments_of(data: bytes) -> list[Any]:
    """The arguments again. An object among them is a request."""
    return [
        GenerateRequest.from_fields(one) if isinstance(one, dict) else one
        for one in _list.decode(data)
    ]


def load_failure(error: Exception) -> RuntimeError:
    """Why a replica could not load its model: Ray writes it, with a traceback, into the status of the deployment."""
    failure = failure_of(error)
    hidden = base64.urlsafe_b64encode(packed(Failure(failure.kind, failure.sentence))).decode()
    return RuntimeError(f"{failure.sentence} [fastslow-failure:{hidden}]")


def failure_in(message: str) -> Exception:
    """The error again, out of a deployment's message. Of an error of Ray's own it is the last line."""
    found = MARK.findall(message)
    if found:
        data = base64.urlsafe_b64decode(found[-1])
        return error_of(msgspec.msgpack.decode(data, type=Failure))
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return RuntimeError(f"Ray could not start the replicas: {lines[-1] if lines else 'no reason'}")
