"""Drafts that are hardly ever accepted are spoken of, once, with a cause."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastslow.advice import CAUSES, advice
from fastslow.output import Metrics

GOOD = Metrics("deep", "suffix", 0.1, 0.01, 50, 50, 200, 100, 0, [2] * 50, 0.0, 0.5, [0.5], 0, 0)


@pytest.mark.parametrize("name", CAUSES)
def test_each_drafter_has_a_cause(name: str) -> None:
    said = advice(replace(GOOD, drafter=name, accepted=1))
    assert said is not None and CAUSES[name] in said and "1 of 200" in said


def test_several_drafters_have_several_causes() -> None:
    said = advice(replace(GOOD, drafter="suffix|head", accepted=0))
    assert said is not None and CAUSES["suffix"] in said and CAUSES["head"] in said
    assert CAUSES["suffix"] in (advice(replace(GOOD, drafter="auto", accepted=0)) or "")


def test_little_is_said_of_little() -> None:
    assert advice(GOOD) is None
    assert advice(replace(GOOD, drafted=50, accepted=0)) is None
    assert advice(replace(GOOD, drafter="off", drafted=0, accepted=0)) is None
