"""Drafts that are hardly ever accepted are spoken of, once, with a cause."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastslow.draft.registry import DRAFTERS
from fastslow.output import Metrics
from fastslow.request.choice import advice

GOOD = Metrics("deep", "suffix", 0.1, 0.01, 50, 50, 200, 100, 0, [2] * 50, 0.0, 0.5, [0.5], 0, 0)


@pytest.mark.parametrize("name", DRAFTERS)
def test_each_drafter_has_a_cause(name: str) -> None:
    said = advice(replace(GOOD, drafter=name, accepted=1))
    assert said is not None and f"Probably {DRAFTERS[name].likely_cause}. Try" in said


def test_several_drafters_have_several_causes() -> None:
    said = advice(replace(GOOD, drafter="suffix|head", accepted=0))
    causes = [DRAFTERS[name].likely_cause for name in ("suffix", "head")]
    assert said is not None and all(cause in said for cause in causes) and "0 of 200" in said
    assert causes[0] in (advice(replace(GOOD, drafter="auto", accepted=0)) or "")


def test_little_is_said_of_little() -> None:
    assert advice(GOOD) is None
    assert advice(replace(GOOD, drafted=50, accepted=0)) is None
    assert advice(replace(GOOD, drafter="off", drafted=0, accepted=0)) is None
