"""One measurement, and what many of them say together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import NamedTuple

from fastslow.engine.output import Metrics
from fastslow.engine.params import Speculation


class Cell(NamedTuple):
    """What is measured: a setting in a mode, so many requests at a time."""

    setting: Speculation
    batch: int = 1
    mode: str = "deep"


@dataclass(frozen=True, slots=True)
class Sample:
    """A cell run once on one part of the prompts. Counts are sums over its answers.

    The clock runs from the first token of a batch to its last: reading prompts is not counted.
    """

    part: int  # which prompts
    turn: int  # which time
    tokens: int  # that came while the clock ran
    seconds: float
    answered: int  # all tokens
    steps: int  # per request: forwards that gave it tokens
    drafted: int
    accepted: int
    forwards: int  # of the model while the clock ran
    rows: int  # in them, all requests together
    acceptance: tuple[tuple[float, int], ...]  # by position: share accepted, weight
    others: float | None = None  # share of the machine that other processes took

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


Samples = Sequence[Sample]


def sample_of(
    batches: Sequence[Sequence[Metrics]], part: int, turn: int, others: float | None = None
) -> Sample:
    """What the answers of a part say; each batch ran after the one before it."""
    every = [m for batch in batches for m in batch]
    forwards = [max(m.steps for m in batch) - 1 for batch in batches]
    return Sample(
        part=part,
        turn=turn,
        tokens=sum(m.tokens - 1 for m in every),
        seconds=sum(_seconds(batch) for batch in batches),
        answered=sum(m.tokens for m in every),
        steps=sum(m.steps for m in every),
        drafted=sum(m.drafted for m in every),
        accepted=sum(m.accepted for m in every),
        forwards=sum(forwards),
        rows=sum(m.steps - 1 + m.drafted for m in every),
        acceptance=tuple(_by_position(every)),
        others=others,
    )


def _seconds(batch: Sequence[Metrics]) -> float:
    """First token of the batch to last; its requests were submitted together."""
    ends = [m.ttft + m.tpot * (m.tokens - 1) for m in batch]
    return max(ends) - min(m.ttft for m in batch)


def _by_position(metrics: Sequence[Metrics]) -> list[tuple[float, int]]:
    # An answer tells shares, not counts: answers weigh by what was drafted for them.
    deepest = max((len(m.acceptance) for m in metrics), default=0)
    found = []
    for depth in range(deepest):
        there = [m for m in metrics if len(m.acceptance) > depth]
        weight = sum(m.drafted for m in there)
        found.append((sum(m.acceptance[depth] * m.drafted for m in there) / weight, weight))
    return found


def seconds_per_token(samples: Samples) -> float:
    """Over all parts; of a part that ran several times its median counts. Infinite without any."""
    by_part: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.tokens:
            by_part[sample.part].append(sample)
    tokens = sum(median(s.tokens for s in same) for same in by_part.values())
    seconds = sum(median(s.seconds for s in same) for same in by_part.values())
    return seconds / tokens if tokens else float("inf")


def rate(samples: Samples) -> float:
    """Tokens a second; see `seconds_per_token`."""
    time = seconds_per_token(samples)
    return 1 / time if time > 0 else 0.0


def ratio(samples: Samples, plain: Samples) -> float:
    """How many times plain decoding, over what both were measured on."""
    both = {(s.part, s.turn) for s in samples} & {(s.part, s.turn) for s in plain}
    mine, theirs = ([s for s in group if (s.part, s.turn) in both] for group in (samples, plain))
    return seconds_per_token(theirs) / seconds_per_token(mine) if both else float("nan")


def ratios_by_turn(samples: Samples, plain: Samples) -> list[float]:
    """The ratio to plain of each turn by itself, in the order of the turns."""
    turns = sorted({s.turn for s in samples})
    found = [
        ratio([s for s in samples if s.turn == t], [s for s in plain if s.turn == t]) for t in turns
    ]
    return [value for value in found if isfinite(value)]


def tokens_per_step(samples: Samples) -> float:
    """1.0 is plain decoding."""
    steps = sum(s.steps for s in samples)
    return sum(s.answered for s in samples) / steps if steps else 0.0


def accepted_share(samples: Samples) -> float | None:
    """Of what was drafted; None where nothing was."""
    drafted = sum(s.drafted for s in samples)
    return sum(s.accepted for s in samples) / drafted if drafted else None


def acceptance(samples: Samples) -> list[float]:
    """By position: of the drafts that reached it, the share accepted to it."""
    deepest = max((len(s.acceptance) for s in samples), default=0)
    found = []
    for depth in range(deepest):
        there = [s.acceptance[depth] for s in samples if len(s.acceptance) > depth]
        weight = sum(w for _, w in there)
        found.append(sum(share * w for share, w in there) / weight if weight else 0.0)
    return found


def rows_per_step(samples: Samples) -> float:
    """Mean rows of a forward, all requests together."""
    forwards = sum(s.forwards for s in samples)
    return sum(s.rows for s in samples) / forwards if forwards else 0.0


def seconds_per_step(samples: Samples) -> float:
    """Mean seconds from one forward to the next, drafting included."""
    forwards = sum(s.forwards for s in samples)
    return sum(s.seconds for s in samples) / forwards if forwards else 0.0
