"""The caller of a request, and the limits of each API key and of all together."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from fastslow.admission import KEPT, FairPlaces
from fastslow.engine.params import MOST_PRIORITY, Effort, shown
from fastslow.engine.text.switches import EFFORT, nearest_level
from fastslow.request.options import GenerateOptions, given_sampling
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.errors import SOON, ApiError
from fastslow.serve.api.keys import MOST, KeyLimits, StoredKey
from fastslow.serve.api.mode_fields import STEERING

OPEN = secrets.token_hex(16)  # stands for those who need no key, as a key's id does for its owner
ORDINARY = "deep"  # the mode where a request names none
ORDINARY_PRIORITY = 0, MOST_PRIORITY  # that may be asked for without a limit of the key
# fields of a mode that say how and for how long it thinks; others make another mode of it, which may cost more
FREE = frozenset({"base", "thinking", "thinking_budget", "latency_ms", *STEERING})
ALL = ("all",)  # a mode's bounds, where its preset says nothing
NO_LIMITS = KeyLimits()
MINUTE = 60.0
ROUNDING = 1e-6  # of a request or token, that seconds as they are counted may leave missing
EXCEEDED = "rate_limit_exceeded"


@dataclass(frozen=True, slots=True)
class Caller:
    """Name, memory and limits of an API key. memory_key: its requests share remembered answers and cached prefixes;
    nobody outside can work it out. None: no answer is remembered, and prefixes are shared by all who have no key.
    address: where a request without a key comes from."""

    name: str = "anonymous"
    memory_key: str | None = None
    limits: KeyLimits = NO_LIMITS
    address: str = ""

    @classmethod
    def of(cls, key: StoredKey) -> Caller:
        return cls(key.name, _derived(key.id, "key"), key.limits)

    @property
    def share(self) -> str | None:
        """Whose share of the places its requests take: the key's, or its address's."""
        return self.memory_key or network_of(self.address) or None

    def memory(self, cache_salt: str | None = None) -> str | None:
        """The memory key of a request: the caller's, or a hash of the salt, keyed by the caller. No two callers, and
        no two salts, come to the same one."""
        if cache_salt is None:
            return self.memory_key
        return _derived(self.memory_key or OPEN, "salt", cache_salt)

    def limited(
        self, options: GenerateOptions, card: ModelCard, prompts: int = 1
    ) -> GenerateOptions:
        """The options as the limits let them through: where they give no `max_tokens`, with the most that they may.
        prompts: of the call, each with such options."""
        limits, changes = self.limits, dict[str, Any]()
        if limits.modes is not None:
            self._check_mode(options.mode, limits.modes)
            _check_effort(options, card)
            if isinstance(options.mode, Mapping):  # a preset that names its bounds has its own
                changes["mode"] = {**options.mode, "bounds": ALL}
        priority = self._priority(options.priority, *(limits.priority or ORDINARY_PRIORITY))
        if priority != options.priority:
            changes["priority"] = priority
        mosts = [n for n in (limits.max_tokens, limits.tokens_per_minute) if n is not None]
        if mosts:
            changes |= self._fewer_tokens(options, card, min(mosts), prompts)
        return options.model_copy(update=changes) if changes else options

    def _check_mode(self, mode: Any, allowed: list[str]) -> None:
        name, known = _base(mode), ", ".join(sorted(allowed))
        if name not in allowed:
            raise _refusal("mode", f"mode={shown(name)} is not open to this key, but {known}")
        if isinstance(mode, Mapping) and (more := sorted({*mode} - FREE)):
            field = f"{more[0]}={shown(mode[more[0]])}"
            said = f"{field} is not open to this key, but modes as they are: {known}"
            raise _refusal(more[0], said)
        if isinstance(mode, Mapping) and isinstance(wish := mode.get("confidence"), Mapping):
            said = f"confidence={shown(wish)} is not open to this key, but true or false"
            raise _refusal("confidence", said)

    def _priority(self, priority: int, first: int, last: int) -> int:
        if priority == 0:  # as without the field
            return min(max(priority, first), last)
        if not first <= priority <= last:
            whose = "with this key" if self.limits.priority else "without a key that allows more"
            limit = f"priority={shown(priority)} must be from {first} to {last} {whose}"
            raise _refusal("priority", limit)
        return priority

    def _fewer_tokens(
        self, options: GenerateOptions, card: ModelCard, most: int, prompts: int
    ) -> dict[str, Any]:
        """Say what has to change for at most this many tokens in all answers of the call together."""
        tokens, answers = answer_tokens(options, card)
        answers *= prompts
        if tokens is not None and tokens * answers <= most:
            return {}
        each = f" for each of {answers} answers" if answers > 1 else ""
        sampling = given_sampling(options.sampling)
        if (given := sampling.get("max_tokens")) is not None:
            said = f"max_tokens={shown(given)}{each} is above {most}, the most with this key"
            raise _refusal("max_tokens", said)
        if answers > most:
            raise _refusal("n", f"a token{each} is above {most}, the most with this key")
        return {"sampling": {**sampling, "max_tokens": most // answers}}


def answer_tokens(options: GenerateOptions, card: ModelCard) -> tuple[int | None, int]:
    """The most tokens of an answer, None where nobody says, and how many answers are wanted."""
    mode = card.modes.get(_base(options.mode), {}).get("sampling") or {}
    layers = options.sampling_defaults, mode, given_sampling(options.sampling)
    known = {name: value for layer in layers for name, value in layer.items() if value is not None}
    most = known.get("max_tokens")
    return (None if most is None else min(most, card.context)), known.get("n", 1)


def _check_effort(options: GenerateOptions, card: ModelCard) -> None:
    """Refuse a level of effort of the chat template above that of the preset."""
    preset = card.modes.get(_base(options.mode), {})
    bounds = ALL if preset.get("bounds") is None else preset["bounds"]
    wish = (options.chat_template_kwargs or {}).get(EFFORT)
    most: Effort | None = "none" if preset.get("thinking") == "off" else preset.get("effort")
    if wish is None or most is None or not card.efforts or not {"all", "thinking"} & {*bounds}:
        return
    level = nearest_level(most, card.efforts)
    if wish not in card.efforts[: card.efforts.index(level) + 1]:
        said = f"{EFFORT}={shown(wish)} is above {level!r}, the most of this mode with this key"
        raise _refusal(EFFORT, said)


def _refusal(param: str, message: str) -> ApiError:
    return ApiError(403, message, "permission_error", param, "key_limit")


async def caller(request: Request) -> Caller:
    """The dependency of every route that uses the engine."""
    found = request.scope.get("state", {}).get("caller")
    return found if isinstance(found, Caller) else Caller()


Who = Annotated[Caller, Depends(caller)]


def _base(mode: Any) -> str:
    """The preset that a mode is, or is made of."""
    return str((mode.get("base") if isinstance(mode, Mapping) else mode) or ORDINARY)


def network_of(address: str) -> str:
    """An address, or the first half of one of IPv6: whoever has one has all that begin so."""
    with suppress(ValueError):
        ip = ipaddress.ip_address(address)
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(ip), 64), strict=False))
    return address


def _derived(id: str, *parts: str) -> str:
    """Text of 64 digits that only who knows the id can work out, other for other parts."""
    data = b"".join(
        len(part).to_bytes(8, "big") + part
        for part in (text.encode("utf-8", "surrogatepass") for text in ("memory", *parts))
    )
    return hmac.new(id.encode(), data, hashlib.sha256).hexdigest()


class TokenBucket:
    """A rate with room for a minute's worth at once. Its level may fall below zero, which then has to fill up: what
    an answer takes is known only at its end. per_minute: how much comes in a minute, and the most that it holds. now:
    seconds."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """Return how much may be taken now."""
        grown = self._level + max(0.0, now - self._at) * self.per_minute / MINUTE
        self._level, self._at = min(float(self.per_minute), grown), max(now, self._at)
        return self._level

    def take(self, count: float, now: float) -> None:
        self._level = self.level(now) - count

    def wait(self, count: float, now: float) -> float:
        """Seconds until this much may be taken; 0 = now."""
        missing = count - self.level(now)
        return missing * MINUTE / self.per_minute if missing > ROUNDING else 0.0


@dataclass(slots=True)
class _Use:
    """Use of one caller: requests that run, and what is left of "requests" and "tokens" where they have a limit."""

    running: int = 0
    rates: dict[str, TokenBucket] = field(default_factory=dict)

    def headers(self, now: float) -> dict[str, str]:
        """Return the limit, rest and reset of each rate, as headers under OpenAI's names."""
        found = {}
        for what, bucket in self.rates.items():
            found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
            found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.level(now))))
            found[f"x-ratelimit-reset-{what}"] = f"{bucket.wait(bucket.per_minute, now):.3f}s"
        return found


class Limits:
    """The use of all callers, in one event loop. concurrent: requests of all callers at the same time, a quarter of
    them for callers with few; None = no limit. clock: seconds that never go back."""

    def __init__(
        self, concurrent: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        most = MOST if concurrent is None else concurrent
        self._places, self._clock = FairPlaces(most, most // KEPT), clock
        self._uses: dict[str, _Use] = {}

    @property
    def running(self) -> int:
        """Requests that have a place."""
        return self._places.taken

    def enter(self, caller: Caller) -> dict[str, str]:
        """Give a request a place; `leave` gives it back. Returns headers: what is left, as OpenAI's answers say it."""
        now, use, most = self._clock(), self._use(caller), caller.limits.concurrent
        if self.running >= (open_to := self._places.open_to(caller.share, 1)):
            said = f"the server answers {self.running} requests already, and {open_to} is the most at the same time"
            raise _too_many(said, "server_busy", SOON, use.headers(now))
        if most is not None and use.running >= most:
            said = f"this key has {most} requests running already, the most at the same time"
            raise _too_many(said, EXCEEDED, SOON, use.headers(now))
        for what, bucket in use.rates.items():
            if wait := bucket.wait(1, now):
                said = f"this key may use {bucket.per_minute} {what} a minute: try again in {wait:.1f} s"
                raise _too_many(said, EXCEEDED, wait, use.headers(now))
        if "requests" in use.rates:
            use.rates["requests"].take(1, now)
        use.running += 1
        self._places.take(caller.share, 1)
        return use.headers(now)

    def reserve(self, caller: Caller, options: GenerateOptions, card: ModelCard) -> int:
        """Take the tokens that all answers to a request may have; `spend` gives back what they had not."""
        now, use = self._clock(), self._use(caller)
        if (bucket := use.rates.get("tokens")) is None:
            return 0
        most, answers = answer_tokens(options, card)
        tokens = min((most or card.context) * answers, bucket.per_minute)
        if wait := bucket.wait(tokens, now):
            said = f"up to {tokens} tokens are wanted, and this key may use {bucket.per_minute} a minute: try again "
            raise _too_many(f"{said}in {wait:.1f} s", EXCEEDED, wait, use.headers(now))
        bucket.take(tokens, now)
        return tokens

    def spend(self, caller: Caller, tokens: int, reserved: int = 0) -> None:
        """Count an answer's tokens and those of its prompt, of which some were reserved."""
        if bucket := self._use(caller).rates.get("tokens"):
            bucket.take(tokens - reserved, self._clock())

    def leave(self, caller: Caller) -> None:
        """A request is over, however it ended."""
        self._use(caller).running -= 1
        self._places.take(caller.share, -1)

    def _use(self, caller: Caller) -> _Use:
        """Its use by name; buckets are made anew where its limits were changed."""
        use = self._uses.setdefault(caller.name, _Use())
        given = caller.limits.requests_per_minute, caller.limits.tokens_per_minute
        for what, per_minute in zip(("requests", "tokens"), given):
            if per_minute is None:
                use.rates.pop(what, None)
            elif what not in use.rates or use.rates[what].per_minute != per_minute:
                use.rates[what] = TokenBucket(per_minute, self._clock())
        return use


def _too_many(message: str, code: str, wait: float, headers: dict[str, str]) -> ApiError:
    return ApiError(429, message, "rate_limit_error", None, code, wait, headers)
