"""Seconds that one share may add to a step of the others: by its answers, prompts, drafts and probes."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter

from fastslow.engine.core.latency_budget import LATER, LEAST, PATIENCE, WIDEST, more
from fastslow.engine.core.request import Request
from fastslow.engine.types import StepCostModel

LONGER = 1.4  # times as long as without a share a step may take with it
# seconds that a prompt, drafts or probes add to a step where one share is alone: who comes in between waits for it,
# and where nobody names shares, that is the same caller
ALONE, UNNAMED = 0.1, 1.0
SOON = 0.05  # seconds that a step may take at least where one share is alone, but another was there lately
SAVED = 0.125  # of the time that passes, which a share may use later for its prompts
AGAIN = 64  # steps without drafts after which a share tries one node: what a pass took may have been chance
UNKNOWN = 4  # nodes of depth that a drafter may try of which nobody knows what a pass takes
Drafts = Sequence[tuple[Request, int]]  # and the nodes that it may draft
Want = Callable[[int], float]


class StepBudget:
    """The seconds that each share may take of the step that is being scheduled, by what steps usually take.

    A share alone makes no step more than LONGER times as long as that of all others, but for one answer, which every
    share has. What drafts and probes of all shares add is at most as long as the step without them, and is dealt
    out as places are: a share that wants little has it, none gets more than all others want together, unless the step
    is short enough. A share that was there lately counts as one answer: its next request may come amid a step.

    Prompts of all shares may add ALONE, too, where the step is shorter; each share that reads has an equal part of it.
    What makes a step LONGER than that a share pays of its credit: a part of the time that passes, up to ALONE.

    A probe that does not fit runs in a later step, once its share has saved enough for it: a part of each step
    that it waits. No decision sees a token of its own step.
    """

    def __init__(
        self, cost_model: StepCostModel, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._cost_model = cost_model
        self._timer = timer
        self._seen: dict[str | None, float] = {}  # when a share was last there
        self.there = Counter[str | None]()  # requests that run or wait, by share
        self._groups: int | None = 0
        self._answers = Counter[str | None]()  # that are in this step
        self._readers = 1  # shares with prompts
        self._read = Counter[str | None]()  # rows of these in this step
        self._credit = dict[str | None, float]()  # seconds
        self._began = timer()
        self._probed = Counter[str | None]()  # rows of probes in this step
        self._saved = dict[str | None, float]()  # seconds, by shares whose probes wait
        self._waited = set[str | None]()  # which did so in this step
        self._refused = Counter[str | None]()  # steps in which a share had no draft that it wanted

    def begin(self, requests: Iterable[Request]) -> None:
        """Begin a step; `requests`: all that run or wait."""
        now = self._timer()
        paid = {} if self.alone else {one: self._adds(one) - self._free(one) for one in self._read}
        self.there.clear()
        self._groups = 0
        for request in requests:
            self.there[request.share] = self.there.get(request.share, 0) + 1
            self._groups = more(self._groups, request.current_groups)
        self._seen |= dict.fromkeys(self.there, now)
        earned, self._began = SAVED * (now - self._began), now
        for share, at in list(self._seen.items()):
            if now - at >= LATER:
                for known in (self._seen, self._credit, self._saved, self._refused):
                    known.pop(share, None)
                continue
            left = self._credit.get(share, ALONE) - max(0.0, paid.get(share, 0.0))
            self._credit[share] = min(ALONE, max(0.0, left) + earned)
            self._saved.setdefault(share, 0.0)
        for counts in (self._read, self._probed, self._waited):
            counts.clear()

    @property
    def alone(self) -> bool:
        """True where one share is there, and no other was lately."""
        return len(self._seen) < 2

    def beside(self, others: int, each: float = 0.0) -> int:
        """Return how many answers of one share run beside so many of others; at least 1. each: seconds of a mask."""
        own, most = range(1, WIDEST + 1), self._limit(others)
        return max(1, bisect_right(own, most, key=lambda n: self._seconds(others + n) + n * each))

    def place(self, running: Sequence[Request], able: Sequence[Request]) -> None:
        """Note who is in this step, of those that run, and who may start in it."""
        readers: set[str | None] = set()
        self._answers.clear()
        for request in running:
            if request.pending > 1:
                readers.add(request.share)
            else:
                self._answers[request.share] = self._answers.get(request.share, 0) + 1
        readers.update(r.share for r in able if r.pending > 1)
        self._readers = max(1, len(readers))

    def rows(self, request: Request, rows: int, left: int) -> int:
        """Return how many of `rows` prompt rows a request reads in this step; at least 1 if its share has none. left:
        rows that the whole step still has."""
        share, short = request.share, self._read.total() + rows <= LEAST
        if rows < 2 or (self.alone and (share is None or short)):
            return rows
        plain = self._seconds(max(1, self._answers.total()))
        ahead = self._answers.total() + self._read.total() - self._read[share]
        readers = max(1, self._readers - len(self._read.keys() - {share}))
        most = max(0.0, max(plain, ALONE) + plain - self._seconds(max(1, ahead))) / readers
        if not self.alone:
            rows = min(rows, max(LEAST, left // readers))
            free = max(self._free(share), self._least() - plain)
            most = min(most, max(free, self._credit[share]))
        fits = bisect_right(range(1, rows + 1), most, key=lambda n: self._adds(share, n))
        least = min(rows, 2 * LEAST) if self.alone else 1  # fewer take hardly less time
        return max(fits, least * (not self._read[share]))

    def read(self, request: Request, rows: int) -> None:
        """A request reads so many rows of its prompt in this step; below 0: it does not, after all."""
        self._read += Counter({request.share: rows})

    def _adds(self, share: str | None, rows: int = 0) -> float:
        """Seconds that rows of a share's prompts add to this step, with so many more."""
        others = self._answers.total() + self._read.total() - self._read[share]
        return self._seconds(others + self._read[share] + rows) - self._seconds(max(1, others))

    def _free(self, share: str | None) -> float:
        """Seconds that prompts of a share may add to this step and pay nothing."""
        answers = self._answers.total()
        most = LONGER * self._seconds(max(1, answers - self._answers[share]))
        return max(0.0, most - self._seconds(max(1, answers)))

    def may_probe(self, request: Request, running: int) -> bool:
        """Tell whether a request runs its probe in this step, in which so many answers run."""
        share, rows = request.share, request.rows_after(len(request.tokens))
        every, own = self._probed.total() + rows, self._probed[share] + rows
        plain, alone = self._seconds(running), len(self.there) < 2
        others = self.there.total() - self.there[share]
        whole = self._seconds(running + own) - plain
        fits = self._seconds(running + every) - plain <= self._most(plain)
        fits = fits and whole <= self._spare(plain, others)
        fits = fits or (alone and not self._probed[share])
        if not fits and share not in self._waited and whole <= self._saved[share]:
            fits, self._saved[share] = True, 0.0
        if fits:
            self._probed[share] += rows
        elif share not in self._waited:
            self._waited.add(share)
            self._saved[share] += plain / PATIENCE
        return fits

    def nodes(
        self, ready: Sequence[Request], wishes: Sequence[int], by_share: Mapping[str | None, int]
    ) -> list[int]:
        """Return how many nodes each request drafts, of what it may. by_share: rows of the step, without drafts."""
        drafts = defaultdict[str | None, list[tuple[Request, int]]](list)
        for request, wish in zip(ready, wishes, strict=True):
            if wish:
                drafts[request.share].append((request, wish))
        rows, most = sum(by_share.values()), max(wishes, default=0)
        wants = {share: self._want(some, rows, drafts) for share, some in drafts.items()}
        whole, plain = {share: want(most) for share, want in wants.items()}, self._seconds(rows)
        left, caps = self._most(plain), dict.fromkeys(wants, most)
        for after, (share, want) in enumerate(sorted(whole.items(), key=itemgetter(1))):
            spare = self._spare(plain, rows - by_share[share])
            part = min(left / (len(whole) - after), max(spare, sum(whole.values()) - want))
            left -= min(want, part)
            if want > part:
                caps[share] = bisect_right(range(1, most + 1), part, key=wants[share])
            self._refused[share] = 0 if caps[share] else self._refused[share] + 1
        sizes = [min(wish, caps.get(r.share, 0)) for r, wish in zip(ready, wishes)]
        for b, (request, wish) in enumerate(zip(ready, wishes)):
            if wish and self._refused[request.share] >= AGAIN:
                sizes[b], self._refused[request.share] = 1, 0
        return sizes

    def _want(self, own: Drafts, rows: int, drafts: Mapping[str | None, Drafts]) -> Want:
        """Seconds that a share's drafts add to a step of so many other rows, where each has at most so many nodes.
        Shares that ask the same drafter share its passes."""
        asking = Counter(r.speculation for some in drafts.values() for r, _ in some)
        shares = Counter(
            one for some in drafts.values() for one in {r.speculation for r, _ in some}
        )
        passes, tries, plain = list[tuple[float, int, int]](), UNKNOWN, self._seconds(rows)
        depths = {r.speculation: nodes for r, nodes in sorted(own, key=itemgetter(1))}
        for drafter, key in {r.speculation: r.memory_key for r, _ in own}.items():
            each, free = self._cost_model.draft_seconds(drafter, key, asking[drafter]), 0
            if each is None:  # as a step of the target, but for a few that show what it takes
                each, free, tries = self._seconds(asking[drafter]), tries, 0
            passes.append((each / shares[drafter], depths[drafter], free))

        def seconds(cap: int) -> float:
            more = sum(min(nodes, cap) for _, nodes in own)
            masks = sum(min(nodes, cap) * r.mask_seconds for r, nodes in own)
            drafting = sum(each * max(0, min(depth, cap) - free) for each, depth, free in passes)
            return drafting + masks + self._seconds(rows + more) - plain

        return seconds

    def _most(self, plain: float) -> float:
        """Seconds that all drafts, or all probes, add to a step that takes so long without them."""
        return max(plain, self.alone * (UNNAMED if None in self._seen else ALONE))

    def _spare(self, plain: float, others: int) -> float:
        """Seconds left of those that a step of `plain` seconds may take beside so many rows of others."""
        return self._most(plain) if self.alone else max(0.0, self._limit(max(1, others)) - plain)

    def _limit(self, others: int) -> float:
        return max(LONGER * self._seconds(others), self._least())

    def _least(self) -> float:
        """Seconds that a step may always take."""
        return 0.0 if len(self.there) > 1 else SOON

    def _seconds(self, rows: int) -> float:
        return self._cost_model.seconds(self._groups, rows)
