"""What an engine has to do now, and how fast its last steps were, by mode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import ScheduledChunk, Scheduler
from fastslow.engine.core.stats import entry_of
from fastslow.engine.kv.cache import KVCache

MEMORY = 32.0  # steps after which older ones fade: a second or two


@dataclass(slots=True)
class ModeLoad:
    """Requests of one mode."""

    running: int = 0
    waiting: int = 0
    targets: int = 0  # of both, those with a latency target
    oldest: float = 0.0  # seconds that the oldest of those that wait has waited
    tokens_per_step: float = 0.0  # of one request, over the last steps; 0: none ran yet
    step_seconds: float = 0.0  # of steps in which some of them decode and no prompt is read


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """An engine at one moment."""

    modes: dict[str, ModeLoad]  # after 64 names "other"
    last_wait: float  # seconds that the request that began last had waited
    prompt_rate: (
        float  # prompt tokens read in a second of the steps that read some; 0: none did yet
    )
    pages: int
    pages_free: int  # empty, or cached without a user
    page_tokens: int
    places: int  # requests that may be in a step


@dataclass(slots=True)
class _Pace:
    """Running means of one mode's steps."""

    steps: int = 0
    seconds: float = 0.0
    tokens: float = 0.0

    def add(self, seconds: float, tokens: float) -> None:
        self.steps += 1
        share = max(1.0 / self.steps, 1.0 / MEMORY)
        self.seconds += share * (seconds - self.seconds)
        self.tokens += share * (tokens - self.tokens)


@dataclass(slots=True)
class LoadMeter:
    """Notes steps. The engine's thread writes; any thread may look."""

    last_wait: float = 0.0
    _paces: dict[str, _Pace] = field(default_factory=dict)
    _read: float = 0.0  # prompt tokens, and the seconds that they took; both fade
    _reading: float = 0.0

    def note(
        self,
        work: Sequence[ScheduledChunk],
        ready: Sequence[Request],
        made: Sequence[int],
        rows: int,
        seconds: float,
    ) -> None:
        """A step ran `rows` rows; `made` are the tokens that each `ready` request got."""
        prompt = sum(chunk for _, chunk in work if chunk > 1)
        if prompt:
            fade = 1.0 - 1.0 / MEMORY
            self._read = fade * self._read + prompt
            self._reading = fade * self._reading + seconds * prompt / rows  # its part of the step
        by_mode: dict[str, list[int]] = {}
        for request, tokens in zip(ready, made, strict=True):
            by_mode.setdefault(request.mode, []).append(tokens)
        for mode, tokens_of in by_mode.items():
            pace = entry_of(self._paces, mode, _Pace)
            if prompt and pace.steps:
                continue  # how long it took depends on the prompts, whosever they are
            pace.add(seconds, sum(tokens_of) / len(tokens_of))
        for request in ready:
            if request.spec_stats.steps == 1:  # its first token
                self.last_wait = request.spec_stats.began - request.called

    def snapshot(self, scheduler: Scheduler, kv: KVCache) -> EngineLoad:
        """The load now."""
        modes: dict[str, ModeLoad] = {}
        now = time.monotonic()
        for request in list(scheduler.running):
            load = entry_of(modes, request.mode, ModeLoad)
            load.running += 1
            load.targets += request.latency_target is not None
        for request in list(scheduler.waiting):
            load = entry_of(modes, request.mode, ModeLoad)
            load.waiting += 1
            load.targets += request.latency_target is not None
            load.oldest = max(load.oldest, now - request.called)
        for name, pace in dict(self._paces).items():
            load = entry_of(modes, name, ModeLoad)
            load.tokens_per_step, load.step_seconds = pace.tokens, pace.seconds
        return EngineLoad(
            modes=modes,
            last_wait=max(0.0, self.last_wait),
            prompt_rate=self._read / self._reading if self._reading else 0.0,
            pages=kv.pages,
            pages_free=kv.free_pages,
            page_tokens=kv.page_size,
            places=scheduler.max_running,
        )
