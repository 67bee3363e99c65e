"""A scheduler without a model: requests that want rows, and steps that give them a token."""

from collections.abc import Iterable
from typing import Any

import texts
import torch
from request_fields import request_fields

from fastslow.engine.core.latency_budget import LatencyBudget, RunEverything
from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import Scheduler
from fastslow.engine.core.step_budget import StepBudget
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.sampling.accept.exact import tokenwise
from fastslow.engine.sampling.stop import Stopper
from fastslow.engine.types import StepCostModel
from fastslow.policies.speculation.planner import FixedLength


def request(number: int, prompt: int = 4, room: int = 8, **fields: Any) -> Request:
    params = SamplingParams(max_tokens=room)
    given: dict[str, Any] = {"tokens": [3 + number % 7] * prompt}
    given |= {"id": number, "seed": number, "max_len": prompt + room - 1, "groups": None}
    given |= {"params": params, "stopper": Stopper(params, frozenset(), room, None)}
    given |= {"speculation": Speculation(drafter="off"), "policy": FixedLength(0)}
    given["rule"] = tokenwise
    return Request(**request_fields({**given, **fields}))


def small_cache(pages: int = 200, **fields: Any) -> KVCache:
    """A cache on the CPU; the fields are those of `KVCache`."""
    shape: dict[str, Any] = {"layout": texts.alike(2, 1, 2), "page_size": 4}
    place = {"dtype": torch.float32, "device": "cpu"}
    return KVCache(**{**shape, **place, "pages": pages, **fields})


def scheduler(
    rows: int = 512,
    running: int = 8,
    pages: int = 400,
    budget: LatencyBudget | None = None,
    costs: StepCostModel | None = None,
) -> Scheduler:
    latency = budget or LatencyBudget(RunEverything())
    return Scheduler(small_cache(pages), rows, running, latency, StepBudget(costs or RunEverything()))


def added(step: Scheduler, numbers: Iterable[int], **fields: Any) -> list[Request]:
    """Like requests with these numbers, which now wait."""
    made = [request(number, **fields) for number in numbers]
    for one in made:
        step.add(one)
    return made


def run(step: Scheduler) -> dict[int, int]:
    """Run one step as the core would do it; return request -> rows."""
    found = {}
    for one, chunk in step.next():
        found[one.id] = chunk
        one.computed += chunk
        if one.computed == len(one.tokens):
            one.tokens.append(5)
        step._kv.advance(one.id, one.computed, one.tokens)
        if len(one.tokens) > one.max_len:
            step.remove(one)
    return found
