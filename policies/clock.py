"""What steps and drafts take on this machine: measured once, corrected while they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastslow.engine.types import MarginalValue, RequestView, Stepped
from fastslow.policies.admit import admit
from fastslow.policies.pace import Pace
from fastslow.policies.referee import Referee

DEAR = 0.15  # tokens that a row takes, above which drafting must show that it pays
DEARER = 0.4  # the same, above which it begins with not being tried but now and then
MEASURE = 0.1  # weight of a new measurement
DRAFTED = 3  # nodes by which a row is priced: the first ones are cheaper than those behind


class Clock:
    """The paces of all modes, and what each drafter takes for a node of depth.

    Args:
        measure: gives the pace of steps with a number of routed groups (None = all); asked once for
            each number.
    """

    def __init__(self, measure: Callable[[int | None], Pace]) -> None:
        self._measure = measure
        self._paces: dict[int | None, Pace] = {}
        self._drafting: dict[object, float] = {}
        self._asking: dict[object, float] = {}
        self._referee = Referee()
        self._refereed = False  # whether this step asked it

    def pace(self, groups: int | None) -> Pace:
        """Of steps whose rows run so many groups."""
        if groups not in self._paces:
            self._paces[groups] = self._measure(groups)
        return self._paces[groups]

    def seconds(self, groups: int | None, rows: int) -> float:
        """What a step of so many rows takes, if none runs more than so many groups."""
        return self.pace(groups).seconds(rows)

    def draft_seconds(self, drafter: object) -> float | None:
        """Seconds that a node of depth takes to draft; None: it was never seen drafting."""
        return self._drafting.get(drafter)

    def ask_seconds(self, drafter: object) -> float:
        """Seconds that asking a drafter takes for each request, whatever it says."""
        return self._asking.get(drafter, 0.0)

    def drafted(self, drafter: object, seconds: float, asked: int, depth: int) -> None:
        """A drafter took so long for so many requests and trees of at most this depth."""
        if depth > 0:
            _lean(self._drafting, drafter, seconds / depth)
        if asked > 0:
            _lean(self._asking, drafter, seconds / asked)

    def worth(self, batch: Sequence[RequestView]) -> MarginalValue:
        """What a token and a row more are in a step of these requests: as if each drafted DRAFTED."""
        groups, count = _most(batch), len(batch)
        token = self.seconds(groups, count) / count
        return MarginalValue(token, token * self.row_price(groups, count))

    def admit(
        self,
        batch: Sequence[RequestView],
        survival: Sequence[Sequence[float] | None],
        sizes: Sequence[int],
        rows: int,
    ) -> list[list[int]]:
        """For each request, the nodes to run; `rows` are the step's other rows."""
        return admit(survival, sizes, rows, self.pace(_most(batch)))

    def may_draft(self, groups: int | None, batch: int) -> bool:
        """Whether so many requests may draft in the next step; where rows are dear, what steps with
        and without drafts made decides."""
        price = self.row_price(groups, batch)
        self._refereed = price > DEAR
        return not self._refereed or self._referee.allows(batch, price < DEARER)

    def row_price(self, groups: int | None, batch: int) -> float:
        """What a row takes, in tokens of a request, if each drafted DRAFTED."""
        pace, more = self.pace(groups), DRAFTED * batch
        step = pace.seconds(batch)
        return (pace.seconds(batch + more) - step) / more / (step / batch)

    def note(self, batch: Sequence[RequestView], step: Stepped) -> None:
        """What a step took, and what it made."""
        if (pace := self._paces.get(_most(batch))) is not None:
            pace.note(step.rows, step.seconds)
        if step.pure and self._refereed:
            self._referee.note(len(batch), step.tokens, step.seconds + step.drafting)
        self._refereed = False


def _lean(known: dict[object, float], drafter: object, seconds: float) -> None:
    before = known.get(drafter, seconds)
    known[drafter] = before + MEASURE * (min(seconds, 4 * before) - before)


def _most(batch: Sequence[RequestView]) -> int | None:
    """A step of several modes goes by the one that runs most groups."""
    groups = [request.groups for request in batch]
    return None if None in groups else max(g for g in groups if g is not None)
