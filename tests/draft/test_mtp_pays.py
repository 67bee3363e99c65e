"""What MTP in `auto` costs where nothing is accepted, and brings where it is: by a clock that forwards move."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine_tools import Ask, Bench, cache_for
from steps import AcceptanceTable, TableLayer

from fastslow.draft.head.growing import Growth
from fastslow.draft.mtp.assistant import AssistantDraft
from fastslow.draft.mtp.draft import MtpDraft
from fastslow.draft.router import DrafterRouter
from fastslow.draft.several import AdaptiveDrafter
from fastslow.draft.suffix.draft import SuffixDraft
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request_parts import Drafting
from fastslow.engine.kv.state.layout import RowState, StateLayout
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.rows import Rows
from fastslow.engine.types import Drafter, ModelOutput
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.step_cost import StepCostCurve

VOCAB, PROMPT, TOKENS = 1000, 20, 96
TEXT = np.random.default_rng(0).integers(0, VOCAB, 400).tolist()
SETTINGS, ROWS = Speculation(), (1, 2, 4, 8, 16, 32, 64, 256)


class TimedModel:
    """Says one text. price: of a row, and once more of a pass over its MTP layer, in plain steps of a request."""

    dtype, device, storage = torch.float32, torch.device("cpu"), KVStorage
    config: Any = SimpleNamespace(
        vocab_size=VOCAB, context=400, rope_length=lambda _: 0, layers=(None,), eos_ids=(),
        state_layout=StateLayout((RowState(1, 2, 2), RowState(1, 2, 2))),
    )  # fmt: skip

    def __init__(self, price: float, passes: float, table: AcceptanceTable) -> None:
        self.now, self.watched, self.passed, self.steps = 0.0, 0, 0, 0
        self._price, self._passes = price, passes
        self._layer = TableLayer(table, None, VOCAB)
        self.mtp = SimpleNamespace(states=self._layer.states, forward=self._draft, heads=1)

    def seconds(self, rows: int) -> float:
        return 0.01 * (1 + self._price * (rows - 1))

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        self.now += self.seconds(len(rows.tokens))
        self.steps, self.watched = self.steps + 1, self.watched + bool(features)
        best = np.array([TEXT[n + 1] for n in rows.positions[rows.outputs]])
        return ModelOutput(torch.empty(0, VOCAB), torch.zeros(len(rows.feature_rows), 2), best)

    def _draft(self, rows: Rows, kv: KVStorage, head: int) -> ModelOutput:
        share = self._passes if len(rows.outputs) else 0.01
        self.now, self.passed = self.now + share * self.seconds(len(rows.tokens)), self.passed + 1
        return self._layer.forward(rows, kv, head)


def answered(model: Any, drafter: str, running: int, turns: int) -> list[float]:
    """Speed of each turn of answers, times plain."""
    controller = SpeculationController(lambda _: StepCostCurve(ROWS, [model.seconds(n) for n in ROWS]))
    kv, found = cache_for(model, 1024, 16), []
    growth = Growth(1, controller.value)
    made: Drafter = MtpDraft(model, kv, growth)
    if "assistant" in drafter:
        made = AssistantDraft(model.mtp, model, kv, growth)
    if "auto" in drafter:
        both = [SuffixDraft(), made]
        made = AdaptiveDrafter(both, controller.selection(2, SETTINGS), lambda: float(model.now))
    core = EngineCore(model, kv, DrafterRouter({SETTINGS: made}, controller.drafted), cost_model=controller)
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.0)
    for turn in range(turns):
        requests = [Bench(model, {}).request(8 * turn + n, Ask(tuple(TEXT[:PROMPT]), params)) for n in range(running)]
        for request in requests:
            request.drafting = Drafting(SETTINGS, controller.policy(SETTINGS, SETTINGS))
            core.add(request)
        core.step()
        began, before = model.now, sum(len(r.tokens) for r in requests)
        while not any(r.done for r in requests):
            core.step()
        tokens = sum(len(r.tokens) for r in requests) - before
        found.append(tokens / running * model.seconds(running) / (model.now - began))
        while not core.idle:
            core.step()
    return found


@pytest.mark.parametrize("drafter", ["auto", "mtp"])
@pytest.mark.parametrize("running", [1, 8])
@pytest.mark.parametrize(("price", "passes"), [(0.01, 0.1), (0.05, 0.4), (0.3, 0.1)])
@pytest.mark.parametrize("claim", [0.0, 0.9])
def test_what_is_never_accepted_costs_little_in_every_answer(
    drafter: str, running: int, price: float, passes: float, claim: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And while it rests nothing: no features, no pass."""
    model = TimedModel(price, passes, AcceptanceTable(0.0, claim))
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    assert min(answered(model, drafter, running, 3)) > 0.97
    if drafter == "auto":
        assert model.watched < 0.12 * model.steps and model.passed < 0.3 * model.steps


@pytest.mark.parametrize("claim", [0.0, 0.9])
def test_an_assistant_that_is_never_right_costs_little(claim: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TimedModel(0.05, 0.1, AcceptanceTable(0.0, claim))
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    assert min(answered(model, "assistant in auto", 1, 3)) > 0.97
    assert 0 < model.passed < 0.3 * model.steps


@pytest.mark.parametrize("drafter", ["auto", "mtp"])
@pytest.mark.parametrize(("running", "share", "price", "passes", "least"), [
    (1, 0.8, 0.02, 0.1, 2.0), (1, 0.8, 0.05, 0.4, 1.08), (1, 0.8, 0.1, 0.2, 1.4), (8, 0.8, 0.02, 0.1, 1.5),
    (1, 0.95, 0.1, 0.1, 2.25), (1, 0.95, 0.25, 0.25, 1.25), (1, 0.9, 0.1, 0.3, 1.45),
])  # fmt: skip
def test_what_is_accepted_pays_as_far_as_passes_do(
    drafter: str, running: int, share: float, price: float, passes: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last three are 0.8 to 0.95 times what the best fixed length gives in the long run."""
    table = AcceptanceTable(share, share)
    table.learn(SimpleNamespace(prompt_token_ids=TEXT, token_ids=()))  # type: ignore[arg-type]
    model = TimedModel(price, passes, table)
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    assert answered(model, drafter, running, 3)[-1] > least
