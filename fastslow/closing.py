"""An `LLM` that is closed, or that nobody holds any more: what is left, and what must not hold it."""

from __future__ import annotations

import weakref
from typing import NoReturn

from fastslow.drafters import DrafterFactory
from fastslow.engine.core.worker import Worker
from fastslow.engine.model.base import Model
from fastslow.policies.speculation.cost_curve import step_seconds
from fastslow.policies.speculation.step_cost import StepCostCurve


class Closed:
    """Stands in for the parts of a closed LLM; every access raises RuntimeError."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("this LLM is closed; make a new one")


def let_go(worker: Worker, drafters: DrafterFactory) -> None:
    """An LLM was dropped. This may be any thread, in the middle of anything: nothing is waited for."""
    worker.end()
    if worker.ended:  # else it lets go of the drafters when it ends
        drafters.clear()


def curve_of(model: weakref.ref[Model], identity: str, groups: int | None) -> StepCostCurve:
    """What steps take. The model is not held: policies of requests that are over have this, too."""
    target = model()
    if target is None:
        raise RuntimeError("this LLM is closed; make a new one")
    return StepCostCurve(*step_seconds(target, groups, identity))
