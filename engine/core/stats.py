"""Statistics of an engine: what it has done so far, what it holds, and what it has to do now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import ScheduledChunk, Scheduler
from fastslow.engine.core.spec_decode_stats import DraftCounts
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.state.running import StateCounts
from fastslow.engine.kv.state.windows import WindowCounts
from fastslow.engine.sampling.stop import Reason

MOST_NAMES = 64  # drafters and modes counted by name: requests may name their own
OTHER = "other"  # all that come later
MOST_PLACES = 64  # positions of drafts that are counted
MEMORY = 32.0  # steps after which older ones fade: a second or two

T = TypeVar("T")


@dataclass(slots=True)
class DrafterStats:
    """Drafts of one drafter, over the requests that are over."""

    offered: int = 0  # draft tokens that were verified
    accepted: int = 0
    offered_at: list[int] = field(default_factory=list)  # by position, the first 64
    accepted_at: list[int] = field(default_factory=list)

    @property
    def acceptance_rate(self) -> float:
        """Share of the offered tokens that were accepted."""
        return self.accepted / self.offered if self.offered else 0.0

    def add(self, counts: DraftCounts) -> None:
        """Add the counters of a request."""
        self.offered += counts.drafted
        self.accepted += counts.accepted
        _add_places(self.offered_at, counts.offered_at)
        _add_places(self.accepted_at, counts.accepted_at)


@dataclass(slots=True)
class Times:
    """Seconds that were measured, added up."""

    count: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        return self.seconds / self.count if self.count else 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """`count` more, which together took this long."""
        self.count += count
        self.seconds += max(0.0, seconds)


@dataclass(slots=True)
class ModeStats:
    """Requests of one mode that are over. One that escalated counts where it began; one that was begun
    again in another mode counts there, too."""

    requests: int = 0
    escalated: int = 0
    tokens: int = 0
    steps: int = 0  # forwards that gave tokens, of each request
    drafts: int = 0  # of them, with a draft
    drafted: int = 0
    accepted: int = 0
    offered_at: list[int] = field(default_factory=list)  # drafts so deep, the first 64 positions
    accepted_at: list[int] = field(default_factory=list)  # of them, accepted to there
    prompt_tokens: int = 0  # of requests that began to run
    cached_tokens: int = 0  # of these, found in the prefix cache
    prefix_hits: int = 0  # requests that found some
    evicted_pages: int = 0  # that its requests had read, of cached ones
    preemptions: int = 0
    queued: Times = field(default_factory=Times)  # from the call to the first step
    first_token: Times = field(default_factory=Times)  # from the call
    each_token: Times = field(default_factory=Times)  # after the first
    whole: Times = field(default_factory=Times)  # from the call to the last token

    def add(self, request: Request) -> None:
        """A request of the mode is over."""
        spec, timing = request.spec_stats, request.timing
        self.requests += 1
        self.escalated += request.escalated
        self.tokens += request.made
        self.steps += spec.steps
        self.drafted += spec.drafted
        self.accepted += spec.accepted
        self.preemptions += spec.preemptions
        if spec.drafted:
            offered = spec.offered_at
            self.drafts += offered[0]
            _add_places(self.offered_at, offered)
            _add_places(self.accepted_at, spec.accepted_at)
        if timing.began:
            self.prompt_tokens += request.prompt_length
            self.cached_tokens += spec.cached
            self.prefix_hits += spec.cached > 0
            self.queued.add(timing.began - timing.called)
        if len(request.tokens) > request.prompt_length:
            self.first_token.add(timing.first_token - timing.called)
            self.each_token.add(timing.last_token - timing.first_token, request.later_tokens)
            self.whole.add(timing.last_token - timing.called)


@dataclass(slots=True)
class EngineTotals:
    """Counters of the engine's thread, which alone writes them; they grow when a request ends."""

    steps: int = 0
    ended: Counter[Reason] = field(default_factory=Counter)
    drafters: dict[str, DrafterStats] = field(default_factory=dict)
    modes: dict[str, ModeStats] = field(default_factory=dict)

    def add(self, request: Request) -> None:
        """A request that ran or waited is over."""
        reason = request.stopper.reason
        if reason is not None and reason != "escalated":  # its successor ends for both
            self.ended[reason] += 1
        for name, counts in request.spec_stats.by_drafter.items():
            _entry(self.drafters, name, DrafterStats).add(counts)
        _entry(self.modes, request.mode.name, ModeStats).add(request)

    def snapshot(self, scheduler: Scheduler, kv: KVCache) -> EngineStats:
        """The counters now, with the queue and the pages."""
        pages, free, empty = kv.pages, kv.free_pages, kv.empty_pages
        modes, file, states = _copied(self.modes), kv.evicted.file, StateCounts.of(kv.states)
        windows = WindowCounts() if kv.windows is None else kv.windows.counts
        each = list(modes.values())
        here = [*list(scheduler.running), *list(scheduler.waiting)]  # copies: its thread moves them
        for name, evicted in dict(kv.evicted.by_mode).items():
            modes.setdefault(name, ModeStats()).evicted_pages = evicted
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            steps=self.steps,
            tokens=sum(mode.tokens for mode in each) + sum(one.made for one in here),
            prompt_tokens=sum(mode.prompt_tokens for mode in each),
            cached_tokens=sum(mode.cached_tokens for mode in each),
            pages=pages,
            pages_used=pages - free,
            pages_free=empty,
            pages_cached=free - empty,
            ended=dict(self.ended),
            drafters=_copied(self.drafters),
            modes=modes,
            pages_pinned=kv.pins.pages,
            states=states.places,
            states_used=states.used,
            states_cached=states.cached,
            states_free=states.places - states.used - states.cached,
            state_bytes=states.bytes,
            windows=windows.pages,
            windows_used=windows.used,
            windows_cached=windows.cached,
            windows_free=windows.pages - windows.used - windows.cached,
            pages_spilled=0 if file is None else len(file),
            pages_restored=0 if file is None else file.restored,
        )


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine at one moment. Requests are counted when they end, their tokens at once; each of n answers is one."""

    running: int  # requests in the present step
    waiting: int  # requests in the queue
    steps: int
    tokens: int  # of answers, those that run too
    prompt_tokens: int  # of prompts that began to run
    cached_tokens: int  # of these, found in the prefix cache
    pages: int  # of keys and values; the next three add up to it
    pages_used: int  # by requests and pinned prefixes
    pages_free: int
    pages_cached: int  # kept for prompts to come, given up where others need them
    ended: dict[Reason, int]  # requests by finish_reason
    drafters: dict[str, DrafterStats]  # by the drafter that drafted; after 64 names "other"
    modes: dict[str, ModeStats]  # by the mode that was asked for; after 64 names "other"
    pages_pinned: int = 0  # kept for prefixes, whether a request uses them or not
    states: int = 0  # places of running states; the next three add up to it
    states_used: int = 0  # by requests
    states_cached: int = 0  # snapshots, kept for prompts to come
    states_free: int = 0
    state_bytes: int = 0  # of those in use and of snapshots
    windows: int = 0  # pages that layers with windows have of their own: the next three together
    windows_used: int = 0  # that requests still see
    windows_cached: int = 0  # kept for prompts to come
    windows_free: int = 0
    pages_spilled: int = 0  # in the file of `kv_spill`
    pages_restored: int = 0  # read back from there so far

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


@dataclass(slots=True)
class ModeLoad:
    """Requests of one mode."""

    running: int = 0
    waiting: int = 0
    targets: int = 0  # of both, those with a latency target
    oldest: float = 0.0  # seconds that the oldest of those that wait has waited
    step_seconds: float = 0.0  # of steps in which some of them decode and no prompt is read


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """An engine at one moment."""

    modes: dict[str, ModeLoad]  # after 64 names "other"
    last_wait: float  # seconds that the request that began last had waited
    prompt_rate: float  # prompt tokens a second of the steps that read some; 0: none did yet
    pages: int
    page_tokens: int
    places: int  # requests that may be in a step


@dataclass(slots=True)
class _Pace:
    """The running mean of one mode's steps."""

    steps: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.steps += 1
        self.seconds += max(1.0 / self.steps, 1.0 / MEMORY) * (seconds - self.seconds)


@dataclass(slots=True)
class LoadMeter:
    """Notes steps. The engine's thread writes; any thread may look."""

    last_wait: float = 0.0
    _paces: dict[str, _Pace] = field(default_factory=dict)
    _read: float = 0.0  # prompt tokens, and the seconds that they took; both fade
    _reading: float = 0.0

    def note(
        self, work: Sequence[ScheduledChunk], ready: Sequence[Request], rows: int, seconds: float
    ) -> None:
        """A step ran `rows` rows, and gave tokens to the `ready` requests."""
        prompt = 0
        modes: dict[str, None] = {}
        for _, chunk in work:
            prompt += chunk if chunk > 1 else 0
        for request in ready:
            modes[request.mode.name] = None
        if prompt:
            fade = 1.0 - 1.0 / MEMORY
            self._read = fade * self._read + prompt
            self._reading = fade * self._reading + seconds * prompt / rows  # its part of the step
        for mode in modes:
            pace = _entry(self._paces, mode, _Pace)
            if not prompt or not pace.steps:  # else how long it took depends on the prompts
                pace.add(seconds)
        for request in ready:
            if request.spec_stats.steps == 1:  # its first token
                self.last_wait = request.timing.began - request.timing.called

    def snapshot(self, scheduler: Scheduler, kv: KVCache) -> EngineLoad:
        """The load now."""
        modes: dict[str, ModeLoad] = {}
        now = time.monotonic()
        for request in list(scheduler.running):
            load = _entry(modes, request.mode.name, ModeLoad)
            load.running += 1
            load.targets += request.scheduling.latency_target is not None
        for request in list(scheduler.waiting):
            load = _entry(modes, request.mode.name, ModeLoad)
            load.waiting += 1
            load.targets += request.scheduling.latency_target is not None
            load.oldest = max(load.oldest, now - request.timing.called)
        for name, pace in dict(self._paces).items():
            _entry(modes, name, ModeLoad).step_seconds = pace.seconds
        return EngineLoad(
            modes=modes,
            last_wait=max(0.0, self.last_wait),
            prompt_rate=self._read / self._reading if self._reading else 0.0,
            pages=kv.pages,
            page_tokens=kv.page_size,
            places=scheduler.max_running,
        )


def _entry(table: dict[str, T], name: str, kind: type[T]) -> T:
    """The entry of a name, or of the rest where there are enough names."""
    found = table.get(name)
    if found is None:
        name = name if len(table) < MOST_NAMES else OTHER
        found = table.setdefault(name, kind())
    return found


def _copied(table: Mapping[str, T]) -> dict[str, T]:
    """The entries as they are now; the engine's thread changes the originals."""
    return {name: deepcopy(entry) for name, entry in dict(table).items()}


def _add_places(total: list[int], counts: Sequence[int]) -> None:
    """Add counts by position, as far as positions are counted."""
    counts = counts[:MOST_PLACES]
    total += [0] * (len(counts) - len(total))
    for place, count in enumerate(counts):
        total[place] += count
