"""Failures inside the engine's thread: any call that it makes on what it works with may raise."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from fastslow.engine.core import engine_core
from fastslow.engine.core.request import Request
from fastslow.engine.core.stats import EngineTotals
from fastslow.engine.sampling.confidence import Confidence
from fastslow.engine.sampling.stop import Stopper
from fastslow.llm import LLM
from fastslow.policies.speculation.planner import AdaptiveLength, FixedLength
from fastslow.request.choice import ChoiceState

BUDGET = ("begin", "rows", "share", "take", "nodes")
SCHEDULER = ("add", "add_first", "next", "room", "restart", "remove")
CACHE = (
    *("open", "reserve", "close", "advance", "commit", "slots", "room", "stop_publishing"),
    *("free_for", "pages_for", "dp_rank", "clear_prefix", "check_integrity"),
)
DRAFTER = ("propose", "wants", "read", "commit", "release")
COSTS = ("seconds", "draft_seconds", "nodes_that_pay", "note", "value")
STEP = (
    *("lay_rows", "target_probs", "accept", "cut_where_unsure", "note_logprobs"),
    *("read_features", "committed_features"),
)
POLICY = ("plan", "survival", "record")
LISTENERS = ("Request.notify", "ChoiceState._on_step")  # without them nobody hears of it


@dataclass
class Failure:
    """The call `name` raises `error` when it is made for the `nth` time, and from then on if `stays`."""

    name: str
    nth: int
    error: BaseException
    stays: bool = False


@dataclass
class Injected:
    """Counts the calls of the engine's thread, and makes one fail."""

    failure: Failure | None = None
    fired: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread().name == "fastslow-engine":
                self.counts[name] += 1
                bad = self.failure
                if bad is not None and bad.name == name and self._now(bad):
                    self.fired = True
                    raise bad.error
            return real(*arguments, **options)

        return call

    def _now(self, bad: Failure) -> bool:
        count = self.counts[bad.name]
        return count >= bad.nth if bad.stays else count == bad.nth


def inject(llm: LLM, patch: pytest.MonkeyPatch) -> Injected:
    """Stand between the engine's thread and all that it calls."""
    injected, core = Injected(), llm._core
    parts: dict[str, tuple[Any, tuple[str, ...]]] = {
        "scheduler": (core.scheduler, SCHEDULER), "latency_budget": (core.scheduler.latency_budget, BUDGET),
        "kv": (core.kv, CACHE), "storage": (core.kv.storage, ("move",)), "drafter": (core.drafter, DRAFTER),
        "model": (core.model, ("forward",)), "cost_model": (core.cost_model, COSTS), "step": (engine_core, STEP),
        "FixedLength": (FixedLength, POLICY), "AdaptiveLength": (AdaptiveLength, POLICY),
        "Stopper": (Stopper, ("scan", "finish", "news")), "Confidence": (Confidence, ("take", "keeps")),
        "Request": (Request, ("notify",)), "ChoiceState": (ChoiceState, ("_on_step",)),
        "EngineTotals": (EngineTotals, ("add",)),
    }  # fmt: skip
    for part, (owner, names) in parts.items():
        for name in names:
            patch.setattr(owner, name, injected.wrap(f"{part}.{name}", getattr(owner, name)))
    return injected


class Caller:
    """A call in another thread; `error` is what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def ended(self, seconds: float) -> bool:
        """Tell whether the call returns, or raises, within these seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self.value = call()
        except BaseException as error:  # noqa: BLE001 - it is what is looked at
            self.error = error
