"""Whether drafting pays at all where rows are expensive: measured with and without drafts."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from fastslow.policies.speculation.backoff import Backoff, ByKey, RunningMean
from fastslow.policies.speculation.tuning import TUNING, SpeculationTuning


class ABGate:
    """Lets batches draft, or not. It compares tokens a second, with all overhead, of some steps with drafts
    and some without, for batch sizes of every power of two.

    Whether a step drafts depends on earlier steps alone, never on tokens that are drawn in it. What steps of
    one memory key show counts for that key alone. Batches of several keys have comparisons of their own; a
    batch is taken to have the keys of the one before.
    """

    def __init__(self, tuning: SpeculationTuning = TUNING) -> None:
        self._tuning = tuning
        self._comparisons = ByKey[dict[int, _Comparison]](dict)
        self._mixed: dict[int, _Comparison] = {}
        self._keys: AbstractSet[str | None] = frozenset()  # of the latest batch
        self._used: dict[int, _Comparison] | None = None  # in this step

    def allows(self, running: int, row_price: float, key: str | None = None) -> bool:
        """Whether this many requests may draft in the next step; always where rows are cheap."""
        if row_price <= self._tuning.gate_row_price:
            self._used = None
            return True
        alone = running == 1 or self._keys <= {key}
        used = self._used = self._comparisons.of(key) if alone else self._mixed
        size = running.bit_length()
        if size not in used:
            likely = row_price < self._tuning.max_row_price
            used[size] = _Comparison.begin(likely, self._tuning)
        return used[size].allowed

    def note(
        self,
        running: int,
        tokens: int,
        seconds: float,
        pure: bool,
        keys: AbstractSet[str | None] = frozenset({None}),
    ) -> None:
        """A step of this many requests made these tokens; its seconds include drafting. Only pure steps,
        which read no prompts, are compared."""
        self._keys = keys
        asked = self._comparisons.of(next(iter(keys))) if len(keys) == 1 else self._mixed
        used, self._used = self._used, None
        comparison = None if used is not asked else used.get(running.bit_length())
        if pure and comparison is not None:
            comparison.take(tokens, seconds)


@dataclass(slots=True)
class _Comparison:
    """Steps with drafts against steps without, in batches of about one size.

    Attributes:
        drafting: what is usual; a trial does the opposite for one phase.
        backoff: phases until the next trial.
        usual: seconds of a step.
        gain: log of tokens a second with drafts over without, over `trials`.
        rates: tokens a second of the phases since the one before the last trial.
        steps, tokens, seconds: of this phase.
    """

    tuning: SpeculationTuning
    drafting: bool
    backoff: Backoff
    usual: RunningMean
    gain: RunningMean
    trials: int = 0
    trying: bool = False
    rates: list[float] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, likely: bool, tuning: SpeculationTuning) -> _Comparison:
        wait = tuning.gate_wait[0] if likely else tuning.gate_wait_unlikely
        usual, gain = RunningMean(0.0, tuning.usual_memory), RunningMean(0.0, 1.0)
        return cls(tuning, likely, Backoff(*tuning.gate_wait, wait), usual, gain)

    @property
    def allowed(self) -> bool:
        return self.drafting != self.trying

    def take(self, tokens: int, seconds: float) -> None:
        if self.usual.count:
            seconds = min(seconds, self.tuning.held_up * self.usual.value)
        self.usual.add(seconds)
        self.steps += 1
        self.tokens += tokens
        self.seconds += seconds
        if self.steps >= self.tuning.phase:
            self._close()

    def _close(self) -> None:
        self.rates.append(self.tokens / self.seconds)
        self.steps = self.tokens = 0
        self.seconds = 0.0
        if self.trying:
            self.trying = False
        elif len(self.rates) == 3:  # a phase, a trial, a phase
            self._judge()
        else:
            self.rates = self.rates[-1:]
            self.backoff.skip()
            self.trying = self.backoff.due

    def _judge(self) -> None:
        """Compare a trial with the phases before and after it: a change of the machine's speed cancels."""
        tuning = self.tuning
        before, tried, after = self.rates
        gain = math.log(tried / math.sqrt(before * after))
        self.gain.memory = 1 / (tuning.gate_rate if self.drafting else tuning.gate_rate_off)
        self.gain.add(-gain if self.drafting else gain)
        self.trials += 1
        self.rates = [after]
        mean = self.gain.value
        pays = mean >= tuning.gate_loss
        if self.trials >= tuning.gate_trials and pays != self.drafting:
            self.drafting, self.rates = pays, []
            self.backoff.restart(self.backoff.first)
        else:
            off = tuning.gate_wait_off * (1 - tuning.gate_plain * mean)
            growth = tuning.gate_growth + tuning.gate_plain * abs(mean)
            self.backoff.again(growth, None if self.drafting else off)
