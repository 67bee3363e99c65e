"""Settings that nobody should send, drafts that nobody should make: refused, or harmless to others."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_tools import Ask, Bench, OracleDraft, answer, finish, write_kin

from fastslow import LLM, Escalation, GenerationError, Loop, Mode, SamplingParams, Speculation
from fastslow.draft.base import BaseDrafter
from fastslow.draft.registry import DRAFTERS, DrafterKind
from fastslow.engine.backends.loader import load_model
from fastslow.engine.core.request import Request
from fastslow.engine.types import RequestView, Tree

HUGE = 10**30


@pytest.mark.parametrize("make", [
    lambda: SamplingParams(max_tokens=HUGE),
    lambda: SamplingParams(top_k=HUGE),
    lambda: SamplingParams(logit_bias={5: 1e308}),
    lambda: SamplingParams(seed=2**200),
    lambda: SamplingParams(min_p=-1e-320),
    lambda: SamplingParams(stop=["x"] * 65),
    lambda: SamplingParams(stop="x" * 1001),
    lambda: SamplingParams(stop=["a", ""]),
    lambda: SamplingParams(stop=["a", 5]),  # type: ignore[list-item]
    lambda: Speculation(nodes=10**9),
    lambda: Speculation(groups=HUGE),
    lambda: Speculation(layers=(0,) * 20_000),
    lambda: Speculation(drafter="suffix+" * 1000 + "suffix"),
    lambda: Escalation(below=0.5, window=HUGE),
    lambda: Mode(groups=HUGE),
    lambda: Mode(latency_ms=1e-300),
    lambda: Mode(latency_ms=10**400),
    lambda: Mode(thinking_budget=10**400, thinking_soft=10**400),
])  # fmt: skip
def test_settings_without_bounds_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^\w+(\[\d\])?=.* must (be|have) ") as refused:
        make()
    assert len(str(refused.value)) < 200


class Says(BaseDrafter):
    """The same tree for every request."""

    trees: Sequence[Tree] = ()

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        return list(self.trees)


@pytest.fixture(scope="module")
def llm(thinker: Path) -> Iterator[LLM]:
    DRAFTERS["says"] = DrafterKind(lambda settings, deps: Says(), help="", likely_cause="")
    with LLM(thinker, kv_memory="4MiB", progress=False) as llm:
        yield llm
    del DRAFTERS["says"]


@pytest.mark.parametrize(("trees", "said"), [
    ([Tree.chain([5] * 9)], r"proposed \[9\] nodes where \[4\] fit"),
    ([Tree.chain([5, -1])], r"tokens \[5, -1\], and ids are 0 to \d+"),
    ([Tree.chain([10**6])], r"tokens \[1000000\], and ids are 0 to \d+"),
    ([Tree([5, 6], [-1, 1])], r"parents \[-1, 1\]: each must come earlier"),
    ([Tree([5, 6], [-1])], r"parents \[-1\]: each must come earlier"),
    ([Tree([5], [-2])], r"parents \[-2\]: each must come earlier"),
])  # fmt: skip
def test_a_tree_that_does_not_fit_ends_its_step(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, trees: list[Tree], said: str
) -> None:
    monkeypatch.setattr(Says, "trees", trees)
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    with pytest.raises(GenerationError, match=said):
        llm.generate("1 + 1", sampling, speculation=Speculation(drafter="says", nodes=4))
    assert len(llm.generate("1 + 1", sampling).token_ids) == 8  # the engine goes on


MOST = 2**31 - 1
EXTREMES: list[dict[str, Any]] = [
    {"temperature": 1e-320, "seed": 1},
    {"temperature": 100.0, "min_p": 5e-324, "top_p": 5e-324},
    {"temperature": 1.0, "logit_bias": dict.fromkeys(range(320), -100.0)},
    {"max_tokens": MOST, "min_tokens": MOST, "top_k": MOST, "temperature": 1e-45},
    {"repetition_penalty": 100.0, "frequency_penalty": 2.0, "logprobs": 1000},
    {"min_tokens": 6, "stop_token_ids": tuple(range(320))},  # ends with an error: no token is left
]
MODES = [
    Mode(latency_ms=0.001, may_shorten=("draft", "groups")),
    Mode(latency_ms=86_400_000, may_shorten=("draft", "groups")),
    Mode(thinking="on", thinking_budget=MOST, thinking_soft=MOST, loop=Loop()),
    Mode(groups=1, escalate=Escalation(below=1.0, window=1, within=MOST, how="keep")),
    Mode(groups=1, escalate=Escalation(below=5e-324, window=65_536, how="restart")),
    Mode(speculation=Speculation(drafter="self", nodes=64)),
]


@pytest.mark.drafts(300, 50)
def test_extremes_do_not_touch_the_request_beside_them(llm: LLM) -> None:
    plain = SamplingParams(max_tokens=12, ignore_eos=True)
    calls = [({"max_tokens": 12, **wish}, mode) for wish, mode in zip(EXTREMES, MODES)]
    alone = llm.chat("one two", plain, mode=Mode()).token_ids
    for wish, mode in calls + [(EXTREMES[0] | {"max_tokens": 9}, mode) for mode in MODES]:
        beside = llm.stream_chat("three", SamplingParams(**wish), mode=mode)
        with suppress(GenerationError):  # of its own making
            next(beside)
        for name in ("off", "suffix", Speculation(drafter="self", groups=3, nodes=3)):
            assert llm.chat("one two", plain, mode=Mode(), speculation=name).token_ids == alone
        beside.close()


@pytest.mark.parametrize("place", ["plan", "survival", "record", "sample", "judge"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_fails_for_one_request_ends_that_one_alone(tmp_path: Path, place: str, temperature: float) -> None:
    model = load_model(write_kin(tmp_path, vocab_size=96), "float32", progress=False)
    known: dict[int, list[int]] = {}
    bench = Bench(model, {"told": lambda _: OracleDraft(known)})
    params = SamplingParams(max_tokens=9, ignore_eos=True, temperature=temperature)
    asks = [Ask(tuple(range(5 + n, 14 + n)), params, "told", rule="reproducible") for n in range(3)]
    alone = [answer(bench.alone(ask)) for ask in asks]
    known |= {n: [*ask.tokens, *alone[n]] for n, ask in enumerate(asks)}
    requests = [bench.request(n, ask) for n, ask in enumerate(asks)]
    break_(requests[1], place)
    finish(bench.core(), requests)
    assert [request.stopper.reason for request in requests] == ["length", "error", "length"]
    assert isinstance(requests[1].error, ZeroDivisionError) and place in str(requests[1].error)
    assert [answer(requests[n]) for n in (0, 2)] == [alone[0], alone[2]]


def break_(request: Request, place: str) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError(f"it fails to {place}")

    if place == "judge":
        request.rule = fail
    elif place == "sample":
        thinking: Any = SimpleNamespace(
            bounded=True, at=fail, ahead=lambda _: (), lifts=lambda _: False, no_end=lambda *_: (frozenset(), None),
            circles_at=lambda *_: None, asks=lambda _: None, asks_at=lambda *_: None,
        )  # fmt: skip
        request.thinking = thinking
    else:
        setattr(request.drafting.policy, place, fail)
