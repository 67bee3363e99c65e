"""What each step of a request did: what was drafted, what was cut and why, what was accepted, and where each
token of the answer came from.

A trace holds its request's tokens, and of the others no more than how many rows they brought.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import ScheduledChunk
from fastslow.engine.model.config import RoutedUnits
from fastslow.engine.sampling.probs import forced_at
from fastslow.engine.types import ANSWERED, FORCED, TARGET, AcceptResult, OneHot, Tree


def token_sources(
    request: Request, tree: Tree, nodes: Sequence[int], tokens: Sequence[int]
) -> list[str]:
    """Of the tokens that a step gives a request, which does not hold them yet.

    nodes: those that the target accepted, root to leaf, also if the answer ends inside the run.
    """
    if request.next_answered is not None:
        return [ANSWERED] * len(tokens)
    drafted = nodes[: len(tokens)]
    if tree.drafter_names is None:
        found = [request.drafter] * len(drafted)
    else:
        found = [tree.drafter_names[node] for node in drafted]
    if len(found) < len(tokens):
        found.append(TARGET)
    bounded = request.thinking is not None and request.thinking.bounded
    if bounded or request.grammar is not None:
        for i in range(len(tokens)):
            if isinstance(forced_at(request, tokens[:i])[0], OneHot):
                found[i] = FORCED
    return found


FIRST, LAST = 500, 500  # steps that are kept, from the beginning and from the end


class StepTrace:
    """The steps of one answer, of all requests that made it. The engine's thread writes it, and any
    thread may read it meanwhile.

    Args:
        units: what the model's modes may run fewer of.
    """

    def __init__(self, units: RoutedUnits) -> None:
        self._units = units
        self._first: list[str] = []
        self._last = deque[str](maxlen=LAST)  # as text, which takes a quarter of the memory
        self._count = 0
        self._planned = 0
        self._cut: dict[str, int] = {}

    def plan(self, request: Request, planned: int, fits: int, nodes: int) -> None:
        """A step's draft: nodes that its policy wanted, that fit the latency targets, and that may be
        drafted, for which the text's longest length and free pages count, too."""
        left = max(0, request.max_len - len(request.tokens))
        self._planned = planned
        self._cut = {}
        self.cut("latency_target", planned - fits)
        self.cut("max_len", fits - left)
        self.cut("pages", min(fits, left) - nodes)

    def cut(self, why: str, nodes: int) -> None:
        """Nodes that were not verified."""
        if nodes > 0:
            self._cut[why] = nodes

    def read(self, request: Request, rows: int, step: dict[str, Any]) -> None:
        """A step that read some of the text, and not its end."""
        self._add(
            {"mode": request.mode, **self._running(request), "read": rows, "rows": rows} | step
        )

    def verified(
        self,
        request: Request,
        chunk: int,
        tree: Tree,
        accepted: Sequence[int],
        tokens: Sequence[int],
        step: dict[str, Any],
    ) -> None:
        """A step that gave tokens, which the request does not hold yet.

        Args:
            request: whose trace this is.
            chunk: rows of its text.
            tree: what was verified.
            accepted: nodes, also those after the end of the answer.
            tokens: what is left of them, and one of the target.
            step: what is the same for all requests of the step.
        """
        ended, refused = _end(request, tree, accepted, tokens)
        record: dict[str, Any] = {
            "mode": request.mode,
            **self._running(request),
            "read": chunk,
            "rows": chunk + len(tree.tokens),
            "planned": self._planned,
            "cut": self._cut,
            "drafted": [int(token) for token in tree.tokens],
            "parents": list(tree.parents),
            "by": list(tree.drafter_names or [request.drafter] * len(tree.tokens)),
            "accepted": [int(node) for node in accepted[: len(tokens)]],
            "tokens": [int(token) for token in tokens],
            "sources": token_sources(request, tree, accepted, tokens),
            "ended": ended,
            "refused": refused,
        }
        self._add(record | step)
        self._planned, self._cut = 0, {}

    def to_dict(self) -> dict[str, Any]:
        """The steps as plain JSON values, and how many in the middle were left out."""
        count = self._count  # first, for steps may come meanwhile
        steps = [json.loads(step) for step in (*list(self._first), *self._last.copy())]
        return {"steps": steps, "left_out": max(0, count - len(steps))}

    def _running(self, request: Request) -> dict[str, int]:
        return self._units.running(request.current_groups)

    def _add(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":"))
        if len(self._first) < FIRST:
            self._first.append(line)
        else:
            self._last.append(line)
        self._count += 1


def _end(
    request: Request, tree: Tree, accepted: Sequence[int], tokens: Sequence[int]
) -> tuple[str, list[int]]:
    """Why no more of a draft was accepted, and the drafted tokens that the target rejected there."""
    if request.stopper.reason is not None:
        return request.stopper.reason, []
    if len(tokens) <= len(accepted):
        return "unsure", []  # it changes to another mode
    if not tree.tokens:
        return "no_draft", []
    leaf = accepted[-1] if accepted else -1
    refused = [int(token) for token, parent in zip(tree.tokens, tree.parents) if parent == leaf]
    return ("refused" if refused else "draft_ended"), refused


def trace_step(
    work: Sequence[ScheduledChunk],
    trees: Sequence[Tree],
    verdicts: Sequence[Sequence[int]],
    result: AcceptResult,
    rows: int,
    seconds: tuple[float, float],
) -> None:
    """Note a step in the traces of its requests, before they hold its tokens.

    Args:
        work: its requests.
        trees: one for each request that is ready, as are `verdicts`, the accepted nodes.
        verdicts: see there.
        result: what is left of them where answers end.
        rows: of all requests.
        seconds: of drafting and of the target's forward.
    """
    draft_ms, verify_ms = (round(1000 * x, 3) for x in seconds)
    step = {"running": len(work), "step_rows": rows, "draft_ms": draft_ms, "verify_ms": verify_ms}
    place = 0
    for item in work:
        request, chunk = item
        if not item.ready:
            if request.trace is not None:
                request.trace.read(request, chunk, step)
            continue
        if request.trace is not None:
            parts = trees[place], verdicts[place], result.tokens[place]
            request.trace.verified(request, chunk, *parts, step)
        place += 1
