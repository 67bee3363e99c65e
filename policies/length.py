"""How far to draft."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.engine.types import RequestView, Tree
from fastslow.policies.admit import best_length
from fastslow.policies.clock import Clock
from fastslow.policies.odds import Leaning, Odds

CHEAP = 0.03  # drafting a node in less than this share of a plain step is as good as free
NEWEST = 1 / 24  # weight of the newest answer of a drafter
LEAST = 4  # nodes that a cheap drafter is asked for
SILENCE = 8  # steps after which a drafter is asked whatever it brought
PROBES = 16, 256  # steps without a draft before one token is tried: at first, and at last


class FixedLength:
    """The same draft budget at every step, in the request's own groups.

    Args:
        nodes: most draft nodes a step; 0 = plain decoding.
    """

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def plan(self, request: RequestView, running: int) -> int:
        return self._nodes

    def survival(self, tree: Tree) -> None:
        """All nodes run."""

    def record(self, tree: Tree, path: Sequence[int]) -> None:
        """A fixed length learns nothing."""


class AdaptiveLength:
    """As far as drafting pays, from what was accepted so far and what steps take; 0 too.

    Before a step it plans a budget: all of `most` where drafting is as good as free, else the length
    of most expected tokens per second. What the drafter then offers is cut over the whole batch, by
    `survival`. Both know what was accepted before this step, and neither looks at sampled tokens.
    Where nothing was tried for a while, one node is, so that an estimate never stays wrong.

    Args:
        most: most nodes a step.
        odds: what is known of the drafter's acceptance, shared by its requests.
        clock: what drafting and steps take.
        drafter: the drafter's name in `clock`.
    """

    def __init__(self, most: int, odds: Odds, clock: Clock, drafter: object) -> None:
        self._most = most
        self._leaning = Leaning(odds)
        self._clock = clock
        self._drafter = drafter
        self._odds = odds
        self._asked_accepted, self._asked_ran = odds.accepted, odds.ran  # nodes, a running mean
        self._asked = False
        self._ran = 0  # nodes that paid in the last step
        self._silent = 0  # steps since it was last asked
        self._idle = 0  # steps since a node last ran
        self._patience = PROBES[0]
        self._probing = False

    def plan(self, request: RequestView, running: int) -> int:
        pace = self._clock.pace(request.groups)
        each = self._clock.draft_seconds(self._drafter)
        batch = max(running, 1)
        if not self._clock.may_draft(request.groups, batch):
            self._asked = self._probing = False
            return 0
        self._probing = self._idle >= self._patience
        # a token more is worth a batch's share of a step; asking may take longer than it brings
        step = pace.seconds(batch)
        price = pace.seconds(2 * batch) / step - 1  # of a row, in tokens
        worth = (self._asked_accepted - self._asked_ran * price) * step / batch
        self._asked = worth > self._clock.ask_seconds(self._drafter) or self._silent >= SILENCE
        if not self._asked:
            self._silent += 1
            return 0
        self._silent = 0
        if each is None or each < CHEAP * pace.seconds(batch):
            # twice what last paid: nodes that are cut take their time to draft, too
            return min(self._most, LEAST + 2 * self._ran)
        chance, chances = 1.0, []
        for depth in range(1, self._most + 1):
            chance *= self._leaning.of(depth, None)
            chances.append(chance)
        length = best_length(chances, batch, each, pace)
        self._idle += length == 0
        return length or int(self._probing)

    def survival(self, tree: Tree) -> list[float]:
        chances = self._leaning.survival(tree)
        if self._probing and chances:
            chances[0] = 1.0  # tried whatever is known of it
        return chances

    def record(self, tree: Tree, path: Sequence[int]) -> None:
        if self._asked:
            accepted, ran = len(path), len(tree.tokens)
            self._asked_accepted += (accepted - self._asked_accepted) * NEWEST
            self._asked_ran += (ran - self._asked_ran) * NEWEST
            self._odds.asked(accepted, ran)
        self._ran = len(tree.tokens) if tree.tokens else max(self._ran - 1, 0)
        if not tree.tokens:
            self._idle += 1
            return
        self._leaning.learn(tree, path)
        if self._probing and not path:
            self._patience = min(2 * self._patience, PROBES[1])
        elif path:
            self._patience = PROBES[0]
        self._idle = 0
