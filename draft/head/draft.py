"""A trained head that drafts: chains, or trees of the likeliest paths."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from fastslow.draft.head.context import Context
from fastslow.draft.head.head import Head
from fastslow.draft.head.tree import Growing, grow_trees
from fastslow.draft.head.words import Words
from fastslow.engine.noise import Purpose, draw, stream
from fastslow.engine.types import Certain, Draft, Floats, Law, RequestView, Tree, Verdict

NOWHERE = -1e30  # a logit: no mass at any temperature, and still a finite number


@dataclass(slots=True)
class State:
    """What the head holds for a request.

    Attributes:
        context: rows taken in.
        words: tokens that can be drafted.
        features, after: committed rows not taken in yet, and the token after each.
        hidden: [H], the head's output at the last row, once that is taken in.
    """

    context: Context
    words: Words
    features: list[Tensor] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    hidden: Tensor | None = None

    @property
    def root(self) -> Tensor:
        """What drafts begin with; a state is made with its first rows, so it is there."""
        assert self.hidden is not None
        return self.hidden


class HeadDraft:
    """Drafts from the target's own hidden states (EAGLE: arXiv 2401.15077, 2406.16858, 2503.01840).

    A request's first draft comes after its first step, when there are features. Rows that the
    target never showed (prompts, prefix hits) are missing in the head's context, which costs
    acceptance and nothing else. Nothing here depends on the other requests of a batch.

    Args:
        head: the trained head.
        law: logits -> law under a request's parameters; it must not keep the logits.
        width: 1 drafts chains: at temperature 0 chosen nodes, else sampled from the head's own
            law under the request's parameters. More: trees of chosen nodes, so many of a depth
            going on, the likeliest paths within the budget kept (EAGLE-2).
        depth: of trees at most; a chain is as long as its budget.
    """

    def __init__(self, head: Head, law: Law, width: int = 1, depth: int = 6) -> None:
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.features = head.config.layers
        self._head = head
        self._law = law
        self._width = width
        self._depth = depth
        self._states: dict[int, State] = {}
        self._canvas = Canvas(head.width)

    @torch.inference_mode()
    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> Draft:
        known = [
            (b, request, self._states[request.id])
            for b, (request, most) in enumerate(zip(batch, nodes))
            if most > 0 and request.id in self._states
        ]
        self._take_in([state for _, _, state in known])
        trees = [Tree()] * len(batch)
        if self._width == 1:
            chains = [Chain(request, state, nodes[b]) for b, request, state in known]
            self._extend(chains)
            made = [chain.tree() for chain in chains]
        else:
            growing = [
                Growing(state.context, state.words, state.root, nodes[b]) for b, _, state in known
            ]
            made = grow_trees(self._head, growing, self._width, self._depth)
        for (b, _, _), tree in zip(known, made):
            trees[b] = tree
        return Draft.of(trees)

    def commit(
        self, batch: Sequence[RequestView], verdict: Verdict, features: Tensor | None
    ) -> None:
        if features is None:
            return
        parts = torch.split(features, [len(path) + 1 for path in verdict.paths])
        for request, tokens, own in zip(batch, verdict.tokens, parts):
            if not tokens:
                continue
            first = len(request.tokens) - len(tokens) - 1  # the row that was last before this step
            state = self._states.get(request.id)
            if state is None or state.context.position + len(state.after) != first:
                state = State(Context(self._head.config, first), Words(self._head.common))
                state.words.add(request.tokens)
                self._states[request.id] = state
            state.features.append(own)
            state.after += tokens
            state.words.add(tokens)

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            self._states.pop(request, None)

    def _take_in(self, states: Sequence[State]) -> None:
        fresh = [state for state in states if state.after]
        if not fresh:
            return
        features = torch.cat([part for state in fresh for part in state.features])
        after = [token for state in fresh for token in state.after]
        sizes = [len(state.after) for state in fresh]
        hidden = self._head.read(features, after, [state.context for state in fresh], sizes)
        for state, row in zip(fresh, hidden):
            state.hidden = row
            state.features, state.after = [], []

    def _extend(self, chains: Sequence[Chain]) -> None:
        """All chains in lockstep, one small step of the head a token."""
        hidden = [chain.state.root for chain in chains]
        active = list(chains)
        while active:
            stacked = torch.stack(hidden)
            words = [chain.state.words for chain in active]
            logits = self._head.logits(stacked, words, [1] * len(active))
            for chain, logits_1D in zip(active, logits):
                ids = chain.state.words.ids
                with self._canvas.hold(ids, logits_1D[0].numpy()) as logits_V:
                    chain.extend(logits_V, logits_1D[0].numpy(), self._law)
            going = [i for i, chain in enumerate(active) if len(chain.drafted) < chain.most]
            active = [active[i] for i in going]
            if active:
                hidden = list(
                    self._head.step(
                        stacked[going],
                        [chain.drafted[-1] for chain in active],
                        [chain.state.context for chain in active],
                        [[len(chain.drafted) - 2] for chain in active],
                    )
                )


class Canvas:
    """Logits over the whole vocabulary, all but a request's words without mass; used again and again,
    since filling V numbers takes as long as a small product.

    Args:
        width: V.
    """

    def __init__(self, width: int) -> None:
        self._logits = np.full(width, NOWHERE, dtype=np.float32)
        self._tensor = torch.from_numpy(self._logits)

    @contextmanager
    def hold(self, ids: Tensor, logits: Floats) -> Iterator[Tensor]:
        """[V], for as long as the block runs."""
        places = ids.numpy()
        self._logits[places] = logits
        try:
            yield self._tensor
        finally:
            self._logits[places] = NOWHERE


class Chain:
    """One request's chain while it is drafted."""

    def __init__(self, request: RequestView, state: State, most: int) -> None:
        self.request = request
        self.state = state
        self.most = most
        # new in each step: a rule may have looked at what a number behind a refused token gave
        self._draws = stream(request.seed, len(request.tokens), Purpose.DRAFT)
        self.drafted: list[int] = []
        self._laws: list[Floats] = []
        self._scores: list[float] = []  # of chosen tokens: the head's probability of the path

    def extend(self, logits_V: Tensor, known: Floats, law: Law) -> None:
        """One more token; the chain ends where there is no law. `known`: the logits with mass."""
        try:
            decided = law(logits_V, self.request, self.drafted)
        except FloatingPointError as error:  # its neighbours' drafts go on
            logger.warning("a draft of {} tokens ends: {}", len(self.drafted), error)
            self.most = len(self.drafted)
            return
        if isinstance(decided, Certain):
            self.drafted.append(decided.token)
            logit = float(logits_V[decided.token])
            forced = logit <= NOWHERE  # by a thinking budget: the head has no word for it
            sure = 1.0 if forced else 1 / float(np.exp(known - logit).sum())
            self._scores.append(min(1.0, sure) * (self._scores[-1] if self._scores else 1.0))
            return
        if self.request.reproducible:  # with the numbers that the target's tokens are drawn with
            place = len(self.request.tokens) + len(self.drafted)
            self.drafted.append(draw(decided, stream(self.request.seed, place, Purpose.ACCEPT)))
            return
        self.drafted.append(draw(decided, self._draws))
        self._laws.append(decided)

    def tree(self) -> Tree:
        probs = np.stack(self._laws) if self._laws else None
        return Tree.chain(self.drafted, probs)._replace(scores=self._scores or None)
