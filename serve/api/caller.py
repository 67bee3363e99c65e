"""Who asks: what an API key stands for."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request

from fastslow.engine.params import shown
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.key_file import KeyLimits, StoredKey

OPEN = secrets.token_hex(16)  # stands for those who need no key, as a key's id does for its owner
ORDINARY = "deep"  # the mode of who names none
# fields of a mode that say for how long it thinks; others make another mode of it, which may cost more
FREE = frozenset({"base", "thinking", "thinking_budget", "latency_ms"})
NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class Caller:
    """One API key's name, memory and limits.

    Attributes:
        memory_key: its requests share remembered answers and cached prefixes; nobody outside can work it out.
            None: no answer is remembered, and prefixes are shared by all who have no key.
    """

    name: str = "anonymous"
    memory_key: str | None = None
    limits: KeyLimits = NO_LIMITS

    @classmethod
    def of(cls, key: StoredKey) -> Caller:
        return cls(key.name, _derived(key.id, "key"), key.limits)

    def memory(self, cache_salt: str | None = None) -> str | None:
        """The memory key of a request: the caller's, or one for each of its salts.

        No two callers, and no two salts, come to the same one: it is a hash of the salt, keyed by the caller.
        """
        if cache_salt is None:
            return self.memory_key
        return _derived(self.memory_key or OPEN, "salt", cache_salt)

    def admit(self, ask: Ask, card: ModelCard) -> Ask:
        """The ask as the limits let it through: where it gives no `max_tokens`, with the most that it may.

        Raises:
            ApiError: it asks for more; the sentence names field, value and limit.
        """
        limits = self.limits
        if limits.modes is not None:
            self._check_mode(ask.mode, limits.modes)
        if limits.priority is not None:
            ask = replace(ask, priority=self._priority(ask.priority, *limits.priority))
        if limits.max_tokens is not None:
            ask = self._with_fewer_tokens(ask, card, limits.max_tokens)
        return ask

    def _check_mode(self, mode: str | Mapping[str, Any] | None, allowed: list[str]) -> None:
        name = ORDINARY if mode is None else _base(mode)
        known = ", ".join(sorted(allowed))
        if name not in allowed:
            raise self._refusal("mode", f"mode={shown(name)} is not open to this key, but {known}")
        if isinstance(mode, Mapping) and (more := sorted({*mode} - FREE)):
            said = (
                f"{more[0]}={shown(mode[more[0]])} is not open to this key, but modes as they are"
            )
            raise self._refusal(more[0], f"{said}: {known}")

    def _priority(self, priority: int, first: int, last: int) -> int:
        if priority == 0:  # as without the field
            return min(max(priority, first), last)
        if not first <= priority <= last:
            limit = f"priority={shown(priority)} must be from {first} to {last} with this key"
            raise self._refusal("priority", limit)
        return priority

    def _with_fewer_tokens(self, ask: Ask, card: ModelCard, most: int) -> Ask:
        given = ask.sampling.get("max_tokens")
        if given is None:
            preset = card.modes.get(ORDINARY if ask.mode is None else _base(ask.mode), {})
            own = ask.mode.get("sampling") if isinstance(ask.mode, Mapping) else None
            usual = (own or preset.get("sampling") or {}).get("max_tokens")
            if isinstance(usual, int) and usual <= most:
                return ask
            return replace(ask, sampling={**ask.sampling, "max_tokens": most})
        if isinstance(given, int) and given > most:  # the engine refuses what is no number
            limit = f"max_tokens={shown(given)} is above {most}, the most with this key"
            raise self._refusal("max_tokens", limit)
        return ask

    @staticmethod
    def _refusal(param: str, message: str) -> ApiError:
        return ApiError(403, message, "permission_error", param, "key_limit")


async def caller(request: Request) -> Caller:
    """The dependency of every route that asks the engine."""
    found = request.scope.get("state", {}).get("caller")
    return found if isinstance(found, Caller) else Caller()


def _base(mode: str | Mapping[str, Any]) -> str:
    """The preset that a mode is, or is made of."""
    return mode if isinstance(mode, str) else str(mode.get("base", ORDINARY))


def _derived(id: str, *parts: str) -> str:
    """Text of 64 digits that only who knows the id can work out, other for other parts."""
    data = b"".join(
        len(part).to_bytes(8, "big") + part
        for part in (text.encode("utf-8", "surrogatepass") for text in ("memory", *parts))
    )
    return hmac.new(id.encode(), data, hashlib.sha256).hexdigest()
