"""A trained head that drafts: chains, or trees of the likeliest paths."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fastslow.draft.head.runner import HeadRunner
from fastslow.draft.head.state import FinishedTexts, State
from fastslow.draft.head.tree import NOWHERE, HeadChain
from fastslow.engine.types import (
    AcceptResult,
    Floats,
    Ints,
    MarginalValue,
    RequestView,
    TargetProbs,
    Tree,
)

LEAST = 0.08  # likelihood of a path that is hardly worth its rows, where these cost next to nothing
MOST_WAITING = 256  # rows that nobody has drafted from, before they are taken in all the same
MOST_KEPT = 16384  # rows of texts that have ended
NO_ROWS = torch.empty(0)


class HeadDraft:
    """Drafts from the target's own hidden states (EAGLE: arXiv 2401.15077, 2406.16858, 2503.01840).

    A request's first draft comes after its first step, when there are features. A head that was
    trained to see prompts is shown them as they are read, or takes them over from a text that began
    alike, as the target's prefix cache does. Rows that were never shown are missing in its context,
    which costs acceptance and nothing else.

    Where the length is the engine's to choose, a tree ends where its paths become less likely than
    what their rows take: such nodes would be cut, and each level takes a pass over the head.

    Args:
        runner: of the trained head.
        law: logits -> law under a request's parameters; it must not keep the logits.
        width: 1 drafts chains: at temperature 0 chosen nodes, else sampled from the head's own
            law under the request's parameters. More: trees of chosen nodes, so many of a depth
            going on, the likeliest paths within the budget kept (EAGLE-2).
        depth: of trees at most; a chain is as long as its budget.
        only_best: whether a request's laws are certain and the largest logit decides; None = of no
            request.
        worth: what a token and a row are worth in the batch's step; None = rows cost nothing.
    """

    def __init__(
        self,
        runner: HeadRunner,
        law: TargetProbs,
        width: int = 1,
        depth: int = 6,
        only_best: Callable[[RequestView], bool] | None = None,
        worth: Callable[[Sequence[RequestView]], MarginalValue] | None = None,
    ) -> None:
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.features = runner.layers
        self._runner = runner
        self._law = law
        self._width = width
        self._depth = depth
        self._only_best = only_best or (lambda request: False)
        self._worth = worth
        self._states: dict[int, State] = {}
        self._kept = FinishedTexts(MOST_KEPT)
        self._canvas = LogitsBuffer(runner.width)

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        known = [
            (b, request, self._states[request.id])
            for b, (request, most) in enumerate(zip(batch, nodes))
            if most > 0 and self._knows(request)
        ]
        if not known:
            return [Tree()] * len(batch)
        grown = [
            nodes[b] if self._width > 1 or self._only_best(request) else 0
            for b, request, _ in known
        ]
        states = [state for _, _, state in known]
        paying = self._paying(batch)
        least = [paying if r.speculation.nodes is None else 0.0 for _, r, _ in known]
        depth = self._depth if self._width > 1 else max(grown)
        made = self._grow(states, grown, depth, least)
        drawn = [
            (i, HeadChain(request, state, nodes[b]))
            for i, (b, request, state) in enumerate(known)
            if not grown[i]
        ]
        self._extend([chain for _, chain in drawn])
        for i, chain in drawn:
            made[i] = chain.tree()
        trees = [Tree()] * len(batch)
        for (b, _, _), tree in zip(known, made):
            trees[b] = tree
        return trees

    def commit(
        self, batch: Sequence[RequestView], verdict: AcceptResult, features: Tensor | None
    ) -> None:
        if features is None:
            return
        at = 0
        for request, path, tokens in zip(batch, verdict.paths, verdict.tokens):
            own = features[at : at + len(path) + 1]
            at += len(own)
            if not tokens:
                continue
            first = len(request.tokens) - len(tokens) - 1  # the row that was last before this step
            state = self._at(request, first)
            self._runner.add_words(state.text, tokens)
            if len(state.after) >= MOST_WAITING:
                self._settle(state)
            state.features.append(own)
            state.after += tokens
            state.begun = True

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        found = []
        for request, some in zip(batch, rows, strict=True):
            first = max(some.start, len(request.tokens) - 1 - self._runner.prompt)
            found.append(range(self._missing(request, first), some.stop))
        return found

    def read(self, batch: Sequence[RequestView], rows: Sequence[range], features: Tensor) -> None:
        if not self._runner.prompt:
            return
        states, sizes, after, parts = list[State](), list[int](), list[int](), list[Tensor]()
        end = 0
        for request, some in zip(batch, rows, strict=True):
            end += len(some)
            first = self._missing(request, some.start)
            if first >= some.stop:
                continue
            state = self._at(request, first)
            self._settle(state)
            states.append(state)
            sizes.append(some.stop - first)
            parts.append(features[end - sizes[-1] : end])
            after += request.tokens[first + 1 : some.stop + 1]
        if states:
            whole = torch.cat(parts).to("cpu", torch.float32)
            self._runner.read([state.text for state in states], sizes, after, whole)
        for state, size in zip(states, sizes):
            state.position += size
            state.begun = False

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            state = self._states.pop(request, None)
            if state is None:
                continue
            for gone in self._kept.add(state) if self._runner.prompt else [state]:
                self._runner.close(gone.text)

    def _paying(self, batch: Sequence[RequestView]) -> float:
        """How likely a node has to be, with all before it, to be worth its row."""
        if self._worth is None:
            return LEAST
        worth = self._worth(batch)
        return min(max(LEAST, worth.row / worth.token), 1.0)

    def _knows(self, request: RequestView) -> bool:
        """Whether there is a row to draft from, the one of the last token but one."""
        state = self._states.get(request.id)
        return state is not None and state.begun and state.end == len(request.tokens) - 1

    def _missing(self, request: RequestView, first: int) -> int:
        """The first row from there on that is not known."""
        state = self._states.get(request.id)
        return first if state is None else max(first, state.end)

    def _at(self, request: RequestView, first: int) -> State:
        """The state whose next row stands there."""
        state = self._states.get(request.id)
        if state is not None and state.end > first:  # of what stood there before
            self._runner.close(self._states.pop(request.id).text)
            state = None
        if state is None:
            state = self._begin(request, first)
            self._runner.add_words(state.text, request.tokens)
            self._states[request.id] = state
        if state.end < first:  # rows that were not shown
            self._settle(state)
            self._runner.skip(state.text, first)
            state.skip(first)
        return state

    def _begin(self, request: RequestView, first: int) -> State:
        """A text whose first rows are those of a text that began alike, where there is one."""
        tokens, oldest = request.tokens, max(0, len(request.tokens) - 1 - self._runner.prompt)
        if first > oldest:  # something is missing
            known = [*self._states.values(), *self._kept]
            best = max(known, key=lambda state: state.shared(tokens, first), default=None)
            end = 0 if best is None else best.shared(tokens, first)
            if best is not None and end > oldest:
                text = self._runner.fork(best.text, best.position - end)
                return State(text, end, tokens, best.since)
        return State(self._runner.open(first), first, tokens, first)

    def _settle(self, state: State) -> None:
        """Take in what waits; nothing is drafted until more comes."""
        if state.after:
            whole = torch.cat(state.features).to("cpu", torch.float32)
            self._runner.read([state.text], [len(state.after)], state.after, whole)
            state.position = state.end
            state.features, state.after = [], []

    def _grow(
        self, states: Sequence[State], nodes: Sequence[int], depth: int, least: Sequence[float]
    ) -> list[Tree]:
        """Take in what waits, and grow the trees of those who may have nodes."""
        parts = [part for state in states for part in state.features]
        after = [token for state in states for token in state.after]
        features = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else NO_ROWS
        trees = self._runner.grow(
            [state.text for state in states],
            [len(state.after) for state in states],
            after,
            features.to("cpu", torch.float32),
            nodes,
            self._width,
            depth,
            least,
        )
        for state in states:
            state.position = state.end
            state.features, state.after = [], []
        return trees

    def _extend(self, chains: Sequence[HeadChain]) -> None:
        """All chains in lockstep, one small step of the head a token."""
        active = [chain for chain in chains if chain.most > 0]
        while active:
            for chain in active:
                logits = self._runner.logits(chain.state.text)
                words = self._runner.words(chain.state.text)
                with self._canvas.hold(words, logits) as logits_V:
                    chain.extend(logits_V, logits, self._law)
            active = [chain for chain in active if len(chain.drafted) < chain.most]
            if active:
                texts = [chain.state.text for chain in active]
                self._runner.follow(texts, [chain.drafted[-1] for chain in active])


class LogitsBuffer:
    """Logits over the whole vocabulary, all but a request's words without mass; used again and again,
    since filling V numbers takes as long as a small product.

    Args:
        width: V.
    """

    def __init__(self, width: int) -> None:
        self._logits = np.full(width, NOWHERE, dtype=np.float32)
        self._tensor = torch.from_numpy(self._logits)

    @contextmanager
    def hold(self, places: Ints, logits: Floats) -> Iterator[Tensor]:
        """[V], for as long as the block runs."""
        self._logits[places] = logits
        try:
            yield self._tensor
        finally:
            self._logits[places] = NOWHERE
