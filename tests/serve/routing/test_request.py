"""The parts of a request that a router sees."""

from dataclasses import replace
from typing import Any

import pytest
from fake_engine import TINY
from requests_made import made_request

from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.policies.modes import builtin_modes
from fastslow.serve.engines.routing.request import MOST_CHARACTERS, RoutedRequest, routed_of

UNITS = RoutedUnits("groups", 4)
MODES = {name: mode.model_dump(mode="json") for name, mode in builtin_modes(UNITS).items()}
CARD = replace(TINY, modes=MODES)


def routed(thinks: bool = True, **fields: Any) -> RoutedRequest:
    asked: dict[str, Any] = {"prompt": [{"role": "user", "content": "Hello"}], **fields}
    return routed_of(made_request("one", **asked), replace(CARD, thinks=thinks))


@pytest.mark.parametrize("thinks", [True, False])
def test_deep_requests_are_known_from_quick_ones_whether_the_model_thinks_or_not(thinks: bool) -> None:
    target = {"base": "fast", "latency_ms": 200}
    assert not routed(thinks, mode="fast").deep and not routed(thinks, mode="fast").urgent
    assert routed(thinks, mode=target).urgent and routed(thinks, mode=target).latency_ms == 200
    assert not routed(thinks, mode={"base": "deep", "thinking": "off"}).deep
    for mode in ("deep", None, "auto", {"base": "deep", "groups": 1}, {"base": "auto", "thinking": "off"}):
        assert routed(thinks, mode=mode).deep and not routed(thinks, mode=mode).urgent


def test_modes_keys_and_cut_prompts_are_seen() -> None:
    assert routed(mode={"base": "fast", "groups": 1}).mode == "fast+groups=1"
    assert routed(mode={"base": "fast", "latency_ms": 5}).mode == routed(mode="fast").mode == "fast"
    long = routed(prompt="word " * MOST_CHARACTERS)
    assert len(long.prompt) == MOST_CHARACTERS
    assert long.prompt_tokens == pytest.approx(5 * MOST_CHARACTERS / 4, rel=0.01)
    assert routed(prompt=[7, 8, 9]).prompt_tokens == 3
    assert routed(memory_key="of a").memory_key == "of a" and routed().memory_key == ""
    assert routed(avoid=("a", "b")).avoid == ("a", "b") and routed().id == "one"
