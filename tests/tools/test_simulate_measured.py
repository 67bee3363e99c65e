"""Measured costs of steps: an engine of known costs has exactly these."""

from types import SimpleNamespace
from typing import Any

import pytest

from fastslow.tools.simulate.measured import StepMeter, measured_costs

STEP, ROW, CONTEXT, ATTENTION = 0.02, 0.004, 2e-6, 1.5e-6  # seconds
PAGE = 16


class KnownMeter(StepMeter):
    """Times as the costs above have them; whole pages of a prompt are cached."""

    def __init__(self, llm: Any) -> None:
        super().__init__(llm)
        self.cached: list[list[int]] = []
        self.asked: list[int] = []  # requests

    def _seconds(self, mode: str, prompts: list[list[int]], tokens: int) -> float:
        self.asked.append(len(prompts))
        seconds = 0.0
        for prompt in prompts:
            known = max((self._alike(prompt, one) for one in self.cached), default=0)
            known = min(known, len(prompt) - 1) // PAGE * PAGE
            rows = len(prompt) - known
            seconds += rows * ROW + ATTENTION * rows * (known + rows / 2)
            self.cached.append(prompt)
        for made in range(1, tokens):
            seconds += STEP + CONTEXT * sum(len(prompt) + made for prompt in prompts)
        return seconds

    def _alike(self, one: list[int], other: list[int]) -> int:
        pairs = zip(one, other, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def engine(longest: int = 2048, pages: int = 4096, running: int = 16) -> Any:
    return SimpleNamespace(
        max_model_len=longest, max_running=running, stats=lambda: SimpleNamespace(pages=pages),
        _kv=SimpleNamespace(page_size=PAGE), model=SimpleNamespace(config=SimpleNamespace(vocab_size=10**6)),
    )  # fmt: skip


@pytest.mark.parametrize("longest", [2048, 300])
def test_what_a_token_of_context_costs(longest: int) -> None:
    meter = KnownMeter(engine(longest))
    assert meter.context("fast") == pytest.approx(CONTEXT)
    assert meter.asked[0] == 8  # one request alone drowns in noise
    assert meter.attention("fast", 512) == pytest.approx(ATTENTION)


def test_a_small_engine_is_not_filled() -> None:
    meter = KnownMeter(engine(pages=200))
    assert meter.context("fast") == pytest.approx(CONTEXT) and max(meter.asked) * 512 <= 200 * PAGE / 2 + 512
    short = KnownMeter(engine(longest=20))
    assert short.context("fast") == 0.0 and short.attention("fast", 512) == 0.0


def test_both_are_in_the_costs_and_in_the_curves_no_more_also_of_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastslow.tools.simulate.measured.StepMeter", KnownMeter)
    costs = measured_costs(engine(), ("fast", "deep"), 512)
    assert costs.context_seconds == pytest.approx(CONTEXT)
    assert costs.attention_seconds == pytest.approx(ATTENTION)
    for rows in (64, 256, 512):
        assert costs.step({}, {"fast": rows}) == pytest.approx(rows * ROW)
    for rows in (1, 4, 16):
        assert costs.step({"deep": rows}, {}) == pytest.approx(STEP, rel=1e-4)
    counts, decode, read = KnownMeter(engine(running=1)).mode("fast", 1)
    assert counts == (1, 2) and decode == pytest.approx([STEP, 2 * STEP], rel=0.01)
    assert read[-1] == pytest.approx(2 * ROW, rel=0.01)
