"""Messages between a replica and the server in front of it; each message is one bytes value."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from fastslow.output import Piece
from fastslow.serve.engines.process.messages import Failure, error_of, failure_of

MARK = re.compile(r"\[fastslow (\w+): (.*?) fastslow\]", re.DOTALL)


class Reply(Struct, array_like=True):
    """An item of an answer, or what a call gave. The first item of an answer is sent before the engine begins."""

    replica: str  # the id of the one that answers, as routers know it
    pieces: list[Piece] = []  # what the answer has come to since the item before
    value: Any = None  # what the call gave
    failure: Failure | None = None  # why the answer ends after these pieces, or why the call failed


reply_of = msgspec.msgpack.Decoder(Reply).decode


def load_failure(error: Exception) -> RuntimeError:
    """Why a replica could not load its model: Ray writes it, with a traceback, into the status of the deployment."""
    failure = failure_of(error, "the model cannot be loaded")
    return RuntimeError(f"[fastslow {failure.kind}: {failure.sentence} fastslow]")


def failure_in(message: str) -> Exception:
    """The error again, out of a deployment's message. Of an error of Ray's own it is the last line."""
    found = MARK.findall(message)
    if found:
        return error_of(Failure(*found[-1]))
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return RuntimeError(f"Ray could not start the replicas: {lines[-1] if lines else 'no reason'}")
