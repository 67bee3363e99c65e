"""Whether drafting pays at all where rows are dear: tried both ways, by tokens a second."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

PHASE = 8  # steps that go one way before the other may
SMOOTH = 0.3  # weight of the newest trial
HOPE = 0.6  # the same of one that drafted where nothing is drafted otherwise
LOSS = -0.01  # log gain below which drafting stops: less is within what cannot be measured
SURE = 2  # trials before it may stop
PATIENCE = 2, 48  # phases between trials: at first and at last
UNLIKELY = 4  # phases before the first trial where drafting is not likely to pay
PATIENCE_OFF = 12  # at last where nothing is drafted: what texts would bring is not seen then
PLAIN = 8  # how much faster trials become rare where the gain, or the loss, is plain to see
HELD_UP = 3.0  # a step that takes so many times the usual was held up, and counts as no more


@dataclass(slots=True)
class Case:
    """Batches of about one size.

    Attributes:
        gain: log of tokens a second with drafts over without, a running mean over trials.
        trials: so many went into it.
        drafting: what is usual; a trial goes the other way for one phase.
        trying: whether this phase is a trial.
        wait, patience: phases until the next trial.
        rates: tokens a second of the phases since the one before the last trial.
        steps, tokens, seconds: of this phase.
        usual: seconds of a step, a running mean.
    """

    gain: float = 0.0
    trials: int = 0
    drafting: bool = True
    trying: bool = False
    wait: int = PATIENCE[0]
    patience: int = PATIENCE[0]
    rates: list[float] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    usual: float = 0.0

    @property
    def allowed(self) -> bool:
        return self.drafting != self.trying

    def take(self, tokens: int, seconds: float) -> None:
        """A step of this case is over."""
        held_up = bool(self.usual) and seconds > HELD_UP * self.usual
        seconds = HELD_UP * self.usual if held_up else seconds
        self.usual = seconds if not self.usual else self.usual + SMOOTH * (seconds - self.usual)
        self.steps += 1
        self.tokens += tokens
        self.seconds += seconds
        if self.steps >= PHASE:
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
            self.wait -= 1
            self.trying = self.wait <= 0

    def _judge(self) -> None:
        """Compare a trial with its neighbours on both sides, so that a machine that is faster or
        slower from one second to the next says nothing."""
        before, tried, after = self.rates
        gain = math.log(tried / math.sqrt(before * after))
        gain = -gain if self.drafting else gain
        self.trials += 1
        self.gain += (gain - self.gain) * max(SMOOTH if self.drafting else HOPE, 1 / self.trials)
        self.rates = [after]
        pays = self.gain >= LOSS
        if self.trials >= SURE and pays != self.drafting:
            self.drafting, self.patience, self.rates = pays, PATIENCE[0], []
        else:
            wider = 1.5 + PLAIN * abs(self.gain)
            most = PATIENCE[1] if self.drafting else PATIENCE_OFF * (1 - PLAIN * self.gain)
            self.patience = math.ceil(min(wider * self.patience, most))
        self.wait = self.patience


class Referee:
    """Lets batches draft, or not. A step's curve and the odds of tokens say what drafting should
    bring; what it brings, with all that surrounds it, is only seen from outside: tokens a second of
    some steps with drafts against the same without, apart for batches of each power of two.

    Which way a step goes depends on earlier steps alone, never on tokens that are drawn in it.
    """

    def __init__(self) -> None:
        self._cases: dict[int, Case] = {}

    def allows(self, batch: int, likely: bool = True) -> bool:
        """Whether the next step of so many requests may draft. likely: whether that is what to begin
        with, where nothing is known of such batches."""
        return self._case(batch, likely).allowed

    def note(self, batch: int, tokens: int, seconds: float) -> None:
        """A step of so many requests, and nothing else, made so many tokens; drafting counted."""
        self._case(batch).take(tokens, seconds)

    def _case(self, batch: int, likely: bool = True) -> Case:
        wait = PATIENCE[0] if likely else UNLIKELY
        return self._cases.setdefault(batch.bit_length(), Case(drafting=likely, wait=wait))
