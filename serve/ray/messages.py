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


class Reply(Struct, array_like=True):
    """An item of an answer, or what a call gave.

    Attributes:
        replica: the id of the replica that answers, as routers know it.
        pieces: what the answer has come to since the item before; none in the first item, which is sent before
            the engine begins.
        value: what the call gave.
        failure: why the answer ends after these pieces, or why the call failed.
    """

    replica: str
    pieces: list[Piece] = []
    value: Any = None
    failure: Failure | None = None


reply_of = msgspec.msgpack.Decoder(Reply).decode


def packed_arguments(arguments: Sequence[Any]) -> bytes:
    """The arguments of a method of `Engine`.

    Raises:
        ValueError: a client's value cannot be sent.
    """
    return packed(
        [one.to_fields() if isinstance(one, GenerateRequest) else one for one in arguments]
    )


def arguments_of(data: bytes) -> list[Any]:
    """The arguments again. An object among them is a request."""
    return [
        GenerateRequest.from_fields(one) if isinstance(one, dict) else one
        for one in msgspec.msgpack.decode(data)
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
