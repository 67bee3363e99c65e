"""What an engine has done so far, and what it holds now."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import Scheduler
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.sampling.stop import Reason

MOST_DRAFTERS = 64  # counted by name: requests may join names as they like


@dataclass(slots=True)
class DrafterStats:
    """Drafts of one drafter, over the requests that are over."""

    offered: int = 0  # draft tokens that were verified
    accepted: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Share of the offered tokens that were accepted."""
        return self.accepted / self.offered if self.offered else 0.0


@dataclass(slots=True)
class EngineTotals:
    """Counters of the engine's thread, which alone writes them; they grow when a request ends."""

    steps: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    ended: Counter[Reason] = field(default_factory=Counter)
    drafters: defaultdict[str, DrafterStats] = field(
        default_factory=lambda: defaultdict(DrafterStats)
    )

    def add(self, request: Request) -> None:
        """A request that ran or waited is over."""
        reason, tally = request.stopper.reason, request.tally
        if reason is not None and reason != "escalated":  # its successor ends for both
            self.ended[reason] += 1
        self.tokens += len(request.tokens) - request.prompt_length
        if tally.began:
            self.prompt_tokens += request.prompt_length
            self.cached_tokens += tally.cached
        if tally.drafted:
            name = request.speculation.drafter
            if name not in self.drafters and len(self.drafters) >= MOST_DRAFTERS:
                name = "other"
            drafts = self.drafters[name]
            drafts.offered += tally.drafted
            drafts.accepted += tally.accepted

    def snapshot(self, scheduler: Scheduler, kv: KVCache) -> EngineStats:
        """The counters now, with the queue and the pages."""
        pages, free, empty = kv.pages, kv.free_pages, kv.empty_pages
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            steps=self.steps,
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            pages=pages,
            pages_used=pages - free,
            pages_free=empty,
            pages_cached=free - empty,
            ended=dict(self.ended),
            drafters={name: replace(drafts) for name, drafts in dict(self.drafters).items()},
        )


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine at one moment. Requests are counted when they end; each of n answers is one."""

    running: int  # requests in the present step
    waiting: int  # requests in the queue
    steps: int
    tokens: int  # of answers
    prompt_tokens: int  # of prompts that began to run
    cached_tokens: int  # of these, found in the prefix cache
    pages: int  # of keys and values; the next three add up to it
    pages_used: int  # by requests
    pages_free: int
    pages_cached: int  # kept for prompts to come, given up where others need them
    ended: dict[Reason, int]  # requests by finish_reason
    drafters: dict[str, DrafterStats]  # by the name that requests gave; after 64 of them "other"

    @property
    def prefix_hit_rate(self) -> float:
        """Share of the prompt tokens that the prefix cache held."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All fields and what follows from them, as plain JSON values."""
        rates = {
            name: asdict(drafts) | {"acceptance_rate": drafts.acceptance_rate}
            for name, drafts in self.drafters.items()
        }
        return asdict(self) | {"drafters": rates, "prefix_hit_rate": self.prefix_hit_rate}
