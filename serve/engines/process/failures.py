"""Errors that cross from the engine's process to the server's: they keep their kind and their sentence."""

from __future__ import annotations

from fastslow.output import GenerationError
from fastslow.serve.api.engine import Busy, NotReady
from fastslow.serve.engines.process.messages import Failure

KINDS: tuple[type[Exception], ...] = (Busy, NotReady, TimeoutError, ValueError, RuntimeError)


def failure_of(error: Exception) -> Failure:
    """As a message. A kind that is not known is a RuntimeError, whose sentence names it."""
    if isinstance(error, GenerationError):
        return Failure(GenerationError.__name__, str(error), error.outputs)
    if isinstance(error, Busy):
        return Failure(Busy.__name__, str(error), retry_after=error.retry_after)
    if isinstance(error, NotReady):
        return Failure(NotReady.__name__, str(error), refused=error.refused)
    for kind in KINDS:
        if isinstance(error, kind):
            return Failure(kind.__name__, str(error))
    return Failure(RuntimeError.__name__, f"{type(error).__name__}: {error}")


def error_of(failure: Failure) -> Exception:
    """The error again."""
    if failure.kind == GenerationError.__name__:
        return GenerationError(failure.sentence, failure.outputs)
    if failure.kind == Busy.__name__:
        return Busy(failure.sentence, failure.retry_after)
    if failure.kind == NotReady.__name__:
        return NotReady(failure.sentence, refused=failure.refused)
    kinds = {kind.__name__: kind for kind in KINDS}
    return kinds.get(failure.kind, RuntimeError)(failure.sentence)
