"""Simulated times beside measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastslow.engine.params import shown
from fastslow.tools.simulate.figures import SHARES, AnswerTimes, by_mode

COMPARED = 50, 95  # percentiles


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of one mode; seconds.

    Attributes:
        what: "first token" or "each later one".
    """

    mode: str
    what: str
    percentile: int
    measured: float
    simulated: float

    @property
    def off(self) -> float:
        """How far the simulation is off, as a share of what was measured."""
        return self.simulated / self.measured - 1 if self.measured else 0.0


def compare(
    measured: Sequence[AnswerTimes], simulated: Sequence[AnswerTimes]
) -> list[ComparedFigure]:
    """The figures of those requests that were measured.

    Raises:
        ValueError: none was measured, or one was not simulated, or in another mode.
    """
    if not measured:
        raise ValueError(
            "nothing to compare with: no request of the recorded trace has first_seconds"
        )
    known = {one.request.id for one in measured}
    alike = [one for one in simulated if one.request.id in known]
    if len(alike) != len(known):
        raise ValueError(
            f"{len(known) - len(alike)} of {len(known)} measured requests are not in the trace: simulate the "
            "recorded one"
        )
    ours, theirs = by_mode(alike), by_mode(measured)
    found = []
    for mode, wanted in theirs.items():
        if mode not in ours:
            raise ValueError(
                f"requests of mode {shown(mode)} have another one in the trace: simulate the recorded one"
            )
        for what, there, here in (
            ("first token", wanted.first, ours[mode].first),
            ("each later one", wanted.each, ours[mode].each),
        ):
            for share in COMPARED if there and here else ():
                place = SHARES.index(share)
                found.append(ComparedFigure(mode, what, share, there[place], here[place]))
    return found
