"""Masks of grammars, made while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext

from fastslow.engine.core.request import Request
from fastslow.engine.core.target_probs import drafted_runs
from fastslow.engine.types import Tree

MASK_THREADS = 2


class MaskMaker:
    """Makes the masks of a step's rows in threads of its own; they are kept by each request's grammar."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def beside(
        self, ready: Sequence[Request], trees: Sequence[Tree]
    ) -> AbstractContextManager[None]:
        """Make them while a block runs, which must not ask these grammars; at its end they are there."""
        work = [(r, tree) for r, tree in zip(ready, trees, strict=True) if r.grammar is not None]
        return self._made(work) if work else nullcontext()

    @contextmanager
    def _made(self, work: Sequence[tuple[Request, Tree]]) -> Iterator[None]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(MASK_THREADS, "fastslow-masks")
        jobs = [self._threads.submit(_make, request, tree) for request, tree in work]
        try:
            yield
        finally:
            wait(jobs)


def _make(request: Request, tree: Tree) -> None:
    try:
        for run in drafted_runs(tree):
            assert request.grammar is not None
            request.grammar.at(request.tokens, run)
    except Exception as error:  # noqa: BLE001 - its own: the others go on
        request.fail(error)
