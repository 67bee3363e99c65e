"""What several drafters have brought and what they take, as `Best` weighs them."""

from __future__ import annotations

from dataclasses import dataclass

PRIOR = 1.0  # tokens that a drafter is thought to bring before it has spoken
OLD_OWN, OLD_ALL = (
    10.0,
    50.0,
)  # proposals after which older ones fade: of a request, of all requests
STEADY = 50.0  # times after which older ones fade
PATIENCE = 8, 128  # steps in which a drafter that pays for nobody is not tried: at first, at last


@dataclass(slots=True)
class Known:
    """What proposals of one drafter brought, running means: tokens accepted less what the rows took,
    in tokens; and accepted over promised, where scores promise something."""

    gain: float = PRIOR
    trust: float = 1.0
    count: float = 1.0

    def learn(self, gain: float, accepted: int, promised: float, old: float) -> None:
        self.count = min(self.count + 1, old)
        self.gain += (gain - self.gain) / self.count
        if promised > 0:
            kept = min(accepted / promised * self.trust, 1.5)
            self.trust += (kept - self.trust) / max(self.count, OLD_OWN)


@dataclass(slots=True)
class Trial:
    """When a drafter that pays for nobody is tried again. wait, patience: steps. turn: whose."""

    wait: int = 0
    patience: int = PATIENCE[0]
    turn: int = 0


@dataclass(slots=True)
class Cost:
    """Seconds that asking takes for each request, a running mean."""

    seconds: float = 0.0
    count: float = 0.0

    def learn(self, seconds: float) -> None:
        self.count = min(self.count + 1, STEADY)
        if self.count > 1:
            seconds = min(seconds, 4 * self.seconds)  # it was held up
        self.seconds += (seconds - self.seconds) / self.count


@dataclass(slots=True)
class Case:
    """What is known of all drafters in batches of about one size, from all requests: another size
    makes rows and drafting cheaper or dearer."""

    known: list[Known]
    trials: list[Trial]
    costs: list[Cost]

    @classmethod
    def of(cls, count: int) -> Case:
        every = range(count)
        return cls([Known() for _ in every], [Trial() for _ in every], [Cost() for _ in every])
