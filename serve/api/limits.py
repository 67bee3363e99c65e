"""How much each key, and all of them together, may ask: requests and tokens a minute, and at the same time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from fastslow.serve.api.caller import Caller
from fastslow.serve.api.errors import ApiError

MINUTE = 60.0
ROUNDING = 1e-6  # of a request or token, that seconds as they are counted may leave missing
EXCEEDED = "rate_limit_exceeded"
SOON = 1.0  # seconds after which a place may be free
MOST_CALLERS = 100_000  # whose use is known; of those who ask nothing now, the one that asked first is forgotten


class TokenBucket:
    """A rate with room for a minute's worth at once. Its level may fall below zero, which then has to fill up:
    what an answer takes is known only at its end.

    Args:
        per_minute: how much comes in a minute, and the most that it holds.
        now: seconds.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """How much may be taken."""
        grown = self._level + max(0.0, now - self._at) * self.per_minute / MINUTE
        self._level, self._at = min(float(self.per_minute), grown), max(now, self._at)
        return self._level

    def take(self, count: float, now: float) -> None:
        self._level = self.level(now) - count

    def wait(self, count: float, now: float) -> float:
        """Seconds until so much may be taken; 0 = now."""
        missing = count - self.level(now)
        return missing * MINUTE / self.per_minute if missing > ROUNDING else 0.0

    def full_in(self, now: float) -> float:
        """Seconds until it is full."""
        return self.wait(self.per_minute, now)


@dataclass(slots=True)
class _Use:
    """What one caller uses now, and may yet use."""

    running: int = 0
    requests: TokenBucket | None = None
    tokens: TokenBucket | None = None


@dataclass(slots=True)
class Slot:
    """A request's place among those at the same time. Whoever holds it gives it back once."""

    limits: Limits
    caller: Caller
    headers: dict[str, str] = field(
        default_factory=dict
    )  # what is left, as OpenAI's answers tell it
    held: bool = True

    def give_back(self) -> None:
        """Once; again is nothing."""
        if self.held:
            self.held = False
            self.limits.leave(self.caller)


class Limits:
    """The use of all callers, in one event loop.

    Args:
        concurrent: requests of all callers at the same time; None = no limit.
        clock: seconds that never go back.
    """

    def __init__(
        self, concurrent: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._concurrent, self._clock = concurrent, clock
        self._running = 0
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    @property
    def running(self) -> int:
        return self._running

    def enter(self, caller: Caller) -> Slot:
        """A place for a request.

        Raises:
            ApiError: 429, with the seconds after which it is worth trying again.
        """
        now, use = self._clock(), self._use(caller)
        headers = _headers(use, now)
        if self._concurrent is not None and self._running >= self._concurrent:
            said = (
                f"the server answers {self._concurrent} requests already, the most at the same time"
            )
            raise _refused(said, "server_busy", SOON, headers)
        self._check(caller, use, now, headers)
        if use.requests is not None:
            use.requests.take(1, now)
        use.running += 1
        self._running += 1
        return Slot(self, caller, _headers(use, now))

    def spend(self, caller: Caller, tokens: int) -> None:
        """Count an answer's tokens and those of its prompt."""
        use = self._use(caller)
        if use.tokens is not None:
            use.tokens.take(tokens, self._clock())

    def leave(self, caller: Caller) -> None:
        """A request is over, however it ended."""
        self._use(caller).running -= 1
        self._running -= 1

    def _check(self, caller: Caller, use: _Use, now: float, headers: dict[str, str]) -> None:
        most = caller.limits.concurrent
        if most is not None and use.running >= most:
            said = f"this key has {most} requests running already, the most at the same time"
            raise _refused(said, EXCEEDED, SOON, headers)
        if use.requests is not None and (wait := use.requests.wait(1, now)):
            said = f"this key may make {use.requests.per_minute} requests a minute"
            raise _refused(f"{said}: try again in {wait:.1f} s", EXCEEDED, wait, headers)
        if use.tokens is not None and (wait := use.tokens.wait(1, now)):
            said = f"this key may use {use.tokens.per_minute} tokens a minute"
            raise _refused(f"{said}: try again in {wait:.1f} s", EXCEEDED, wait, headers)

    def _use(self, caller: Caller) -> _Use:
        """Its use by name; buckets are made anew where its limits were changed."""
        use = self._uses.get(caller.name)
        if use is None:
            use = self._uses[caller.name] = _Use()
            self._forget()
        now, limits = self._clock(), caller.limits
        use.requests = _bucket(use.requests, limits.requests_per_minute, now)
        use.tokens = _bucket(use.tokens, limits.tokens_per_minute, now)
        return use

    def _forget(self) -> None:
        while len(self._uses) > MOST_CALLERS:
            name = next((name for name, use in self._uses.items() if not use.running), None)
            if name is None:
                return
            del self._uses[name]


def _refused(message: str, code: str, wait: float, headers: dict[str, str]) -> ApiError:
    return ApiError(429, message, "rate_limit_error", None, code, wait, headers)


def _bucket(bucket: TokenBucket | None, per_minute: int | None, now: float) -> TokenBucket | None:
    if per_minute is None:
        return None
    if bucket is None or bucket.per_minute != per_minute:
        return TokenBucket(per_minute, now)
    return bucket


def _headers(use: _Use, now: float) -> dict[str, str]:
    """What is left of each rate, under OpenAI's names."""
    found = {}
    for what, bucket in (("requests", use.requests), ("tokens", use.tokens)):
        if bucket is not None:
            found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
            found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.level(now))))
            found[f"x-ratelimit-reset-{what}"] = _duration(bucket.full_in(now))
    return found


def _duration(seconds: float) -> str:
    """Such as 20ms, 1.5s or 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < MINUTE:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s"
