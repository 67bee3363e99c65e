"""A measurement, and what many of them show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, median_low, stdev
from typing import NamedTuple

from fastslow.engine.host.machine import CONTENDED
from fastslow.engine.params import Speculation
from fastslow.output import Metrics

CLIP = 1.6  # times a setting's median step cost
Samples = Sequence["Sample"]


class Cell(NamedTuple):
    """Cell that is measured: a setting in a mode, with `batch` requests at a time."""

    setting: Speculation
    batch: int = 1
    mode: str = "deep"


@dataclass(frozen=True, slots=True)
class Sample:
    """A cell run once on one part of the prompts. Counts are sums over its answers. Times are from the first token of
    a batch to its last: reading prompts is not counted."""

    part: int  # which prompts
    turn: int  # which time
    tokens: int  # that came in this time
    seconds: float
    answered: int  # all tokens
    steps: int  # per request: forwards that gave it tokens
    drafted: int
    accepted: int
    forwards: int  # of the model in this time
    others: float | None = None  # share of the machine that other processes took

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def disturbed(self) -> bool:
        """True where other programs took much of the machine; False where that is unknown."""
        return self.others is not None and self.others > CONTENDED


def sample_of(
    batches: Sequence[Sequence[Metrics]], part: int, turn: int, others: float | None = None
) -> Sample:
    """Make the sample of a part from its answers; each batch ran after the one before it."""
    every = [m for batch in batches for m in batch]
    forwards = [max(m.steps for m in batch) - 1 for batch in batches]
    return Sample(
        part=part,
        turn=turn,
        tokens=sum(m.tokens - 1 for m in every),
        seconds=sum(seconds_of(batch) for batch in batches),
        answered=sum(m.tokens for m in every),
        steps=sum(m.steps for m in every),
        drafted=sum(m.drafted for m in every),
        accepted=sum(m.accepted for m in every),
        forwards=sum(forwards),
        others=others,
    )


def seconds_of(batch: Sequence[Metrics]) -> float:
    """From the first token of the batch to the last; its requests were submitted at once."""
    ends = [m.ttft + m.tpot * (m.tokens - 1) for m in batch]
    return max(ends) - min(m.ttft for m in batch)


def rate(samples: Samples) -> float:
    """Tokens a second, a step taking as long as it does in the median run."""
    time = seconds_per_step(samples)
    return tokens_per_forward(samples) / time if time > 0 else 0.0


def ratio(samples: Samples, plain: Samples) -> float:
    """Return the speed as a multiple of plain decoding's: the ratio of tokens a step, divided by that of step times.
    nan without a run of both."""
    pairs = _pairs(samples, plain)
    if not pairs:
        return float("nan")
    mine, theirs = zip(*pairs)
    gain = tokens_per_forward(mine) / tokens_per_forward(theirs)
    return gain / step_cost(samples, plain)


def step_cost(samples: Samples, plain: Samples) -> float:
    """Return the time of a step as a multiple of plain decoding's; nan without a run of both. Each run is compared
    with plain decoding's of the same moment, and counts as CLIP where it is further from the median."""
    pairs = _pairs(samples, plain)
    weights = [s.forwards for s, _ in pairs]
    costs = _clipped(_costs(pairs))
    return sum(c * w for c, w in zip(costs, weights)) / sum(weights) if pairs else float("nan")


def error(samples: Samples, plain: Samples) -> float:
    """Standard error of `ratio`, as a share of it, by how far step costs scatter; infinite before two runs of both."""
    costs = _clipped(_costs(_pairs(samples, plain)))
    return stdev(costs) / fmean(costs) / sqrt(len(costs)) if len(costs) > 1 else inf


def whole_runs(samples: Samples, plain: Samples) -> int:
    """Runs of both that nothing disturbed: neither was beside other programs, and the step cost is within CLIP of the
    median."""
    pairs = _pairs(samples, plain)
    costs = [] if any(pair_disturbed(pair) for pair in pairs) else _costs(pairs)
    return sum(cost == near for cost, near in zip(costs, _clipped(costs)))


def _costs(pairs: Sequence[tuple[Sample, Sample]]) -> list[float]:
    return [(s.seconds / s.forwards) / (p.seconds / p.forwards) for s, p in pairs]


def _clipped(costs: list[float]) -> list[float]:
    middle = median_low(costs) if costs else 0.0  # what disturbs a run makes it longer
    return [min(max(cost, middle / CLIP), middle * CLIP) for cost in costs]


def _pairs(samples: Samples, plain: Samples) -> list[tuple[Sample, Sample]]:
    """Runs of both on the same prompts in the same turn, if there was anything to measure. Disturbed ones count only
    where there are no others."""
    there = {(p.part, p.turn): p for p in plain if p.forwards and p.seconds}
    pairs = [
        (s, there[s.part, s.turn])
        for s in samples
        if s.forwards and s.seconds and (s.part, s.turn) in there
    ]
    return [pair for pair in pairs if not pair_disturbed(pair)] or pairs


def pair_disturbed(pair: tuple[Sample, Sample]) -> bool:
    """Tell whether one of two runs was disturbed."""
    return any(sample.disturbed for sample in pair)


def tokens_per_forward(samples: Samples) -> float:
    """Tokens of all requests of a batch, between its first and its last token."""
    forwards = sum(s.forwards for s in samples)
    return sum(s.tokens for s in samples) / forwards if forwards else 0.0


def tokens_per_step(samples: Samples) -> float:
    """1.0 is plain decoding."""
    steps = sum(s.steps for s in samples)
    return sum(s.answered for s in samples) / steps if steps else 0.0


def accepted_share(samples: Samples) -> float | None:
    """The accepted share of what was drafted; None where nothing was."""
    drafted = sum(s.drafted for s in samples)
    return sum(s.accepted for s in samples) / drafted if drafted else None


def seconds_per_step(samples: Samples) -> float:
    """From one forward to the next, drafting included: the median run."""
    times = [s.seconds / s.forwards for s in samples if s.forwards]
    return median_low(times) if times else 0.0
