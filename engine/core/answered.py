"""A request that begins with tokens of its answer: another engine made them, and this engine resumes there."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.engine.core.request import Request
from fastslow.engine.types import ANSWERED


def resume(request: Request, answered: Sequence[int]) -> None:
    """Have a request that was not submitted yet go on from tokens of its answer.

    It is then as one that was preempted behind them, and computes all of them again. All but the last are
    text from now on. The last one comes from the first step, as if the target had said it: so an answer that
    is over ends there, as it did before, and its log-probabilities are given.

    Raises:
        ValueError: the answer would have ended before, or its grammar does not allow these tokens.
    """
    *text, last = answered
    kept = request.stopper.scan(text)
    if request.stopper.reason is not None:
        raise ValueError(
            f"answered has {len(answered)} tokens, but this answer ends with token {kept} of them"
        )
    tokens = [*request.tokens, *text]
    if request.grammar is not None and not request.grammar.fits(tokens, (last,)):
        raise ValueError("answered holds tokens that the grammar of this call does not allow")
    request.tokens = tokens
    request.answered = tuple(answered)
    request.sources = [ANSWERED] * len(text)
