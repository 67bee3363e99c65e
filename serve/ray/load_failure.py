"""Why a replica could not load its model, on its way through the message of a deployment that failed."""

from __future__ import annotations

import base64
import re

import msgspec

from fastslow.serve.engines.process.failures import error_of, failure_of
from fastslow.serve.engines.process.frames import packed
from fastslow.serve.engines.process.messages import Failure

MARK = re.compile(r"\[fastslow-failure:([A-Za-z0-9_=-]+)\]")


def load_failure(error: Exception) -> RuntimeError:
    """What a replica raises: Ray writes it, with a traceback, into the status of the deployment."""
    failure = failure_of(error)
    hidden = base64.urlsafe_b64encode(packed(Failure(failure.kind, failure.sentence))).decode()
    return RuntimeError(f"{failure.sentence} [fastslow-failure:{hidden}]")


def told_error(message: str) -> Exception:
    """The error again, out of a deployment's message; one of Ray's own is told in its last line."""
    found = MARK.findall(message)
    if found:
        data = base64.urlsafe_b64decode(found[-1])
        return error_of(msgspec.msgpack.decode(data, type=Failure))
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return RuntimeError(f"Ray could not start the replicas: {lines[-1] if lines else 'no reason'}")
