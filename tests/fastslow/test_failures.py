"""Whatever raises in the engine's thread, no caller waits for ever."""

import itertools
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from gate import open_llm, settled
from injected import LISTENERS, Caller, Failure, Injected, inject

from fastslow import LLM, Escalation, GenerationError, Mode, Output, SamplingParams, Speculation
from fastslow.request.choice import ChoiceState
from fastslow.request.options import GenerateOptions, SpeculationLike

WAIT = 5.0  # seconds that a caller may have to wait
TEN = SamplingParams(max_tokens=10, ignore_eos=True)
LONG = SamplingParams(max_tokens=40, ignore_eos=True)  # pages run out
AGAIN = Mode(groups=1, escalate=Escalation(below=1.0, window=2, how="restart"))
ON = Mode(groups=1, escalate=Escalation(below=1.0, window=2, how="keep"))
OVER = Mode(groups=1, escalate=Escalation(below=1.0, window=2, how="recompute"))
QUICK = Mode(latency_ms=1e-3, may_shorten=("groups", "draft"))

OPTIONS: dict[str, Any] = {"kv_memory": "64KiB", "max_model_len": 128, "max_running": 4}


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with open_llm(folder, **OPTIONS) as llm:
        yield llm


@pytest.fixture(scope="module")
def right(folder: Path) -> list[int]:
    """The answer of plain decoding."""
    with open_llm(folder, **OPTIONS) as llm:
        return llm.generate("one two", TEN, speculation="off").token_ids


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def well(llm: LLM, right: list[int]) -> bool:
    """Check that the engine still answers; tell whether all pages are back."""
    asked = Caller(lambda: llm.generate("one two", TEN).token_ids)
    assert asked.ended(WAIT)
    if asked.error is not None:
        raise asked.error
    assert asked.value == right
    return settled(llm)


def test_a_request_that_cannot_be_queued_fails_alone(
    llm: LLM, right: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Caller(lambda: llm.generate("one two", SamplingParams(max_tokens=90)))
    monkeypatch.setattr(llm._core, "_cut_groups", failing(RuntimeError("no pace was measured")))
    modes: list[Any] = ["deep", QUICK, "deep"]
    asked = Caller(lambda: llm.generate(["one two"] * 3, TEN, mode=modes))
    assert asked.ended(WAIT)
    error = asked.error
    assert isinstance(error, GenerationError) and "no pace was measured" in str(error)
    assert [o.finish_reason for o in error.outputs] == ["length", "error", "length"]
    assert [error.outputs[0].token_ids, error.outputs[2].token_ids] == [right] * 2
    assert running.ended(WAIT) and running.error is None and well(llm, right)


@pytest.mark.parametrize("how", ["add_first", "remove", "release", "take", "step"])
def test_an_escalation_that_fails_ends_its_request(
    llm: LLM, right: list[int], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner: Any = llm._core
    owner = {"release": owner.drafter, "take": owner, "step": owner}.get(how, owner.scheduler)
    name = {"take": "_notify", "step": "_escalate"}.get(how, how)
    real, tries = getattr(owner, name), itertools.count()

    def fail(*arguments: Any) -> Any:
        if how == "step":  # the successor is known, and then something raises
            real(*arguments)
        if how == "step" and not arguments[0][0].done or next(tries):
            return None if how == "step" else real(*arguments)
        raise RuntimeError("the switch jammed")

    monkeypatch.setattr(owner, name, fail)
    asked = Caller(lambda: llm.generate("one two", TEN, mode=AGAIN))
    assert asked.ended(WAIT), "it waits for a successor that is never queued"
    if how == "release":  # nothing that an answer needs
        assert asked.error is None and asked.value.token_ids == right
    else:
        assert isinstance(asked.error, GenerationError) and "the switch jammed" in str(asked.error)
    assert well(llm, right)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError("all gone")])
def test_whatever_ends_a_step_every_caller_hears_of_it(
    folder: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = open_llm(folder, **OPTIONS)
    started = llm.stream("one two", SamplingParams(max_tokens=100, ignore_eos=True))
    next(started)
    monkeypatch.setattr(llm._core.scheduler, "next", failing(error))
    asked = [Caller(lambda: list(started))]
    asked += [Caller(lambda: llm.generate("one two", TEN)) for _ in range(6)]
    for one in asked:
        assert one.ended(WAIT) and isinstance(one.error, GenerationError | RuntimeError)
        assert type(error).__name__ in str(one.error) or str(error) in str(one.error)
    if isinstance(error, Exception):
        monkeypatch.undo()
        assert llm.generate("one two", TEN).finish_reason == "length"
    else:
        for call in (lambda: llm.generate("one two"), llm.forget_prompts):
            with pytest.raises(RuntimeError, match=rf"^this LLM is broken \(.*{error!s}"):
                call()
    llm.close()


@pytest.mark.parametrize("often", [1, 2, 1000])
def test_a_listener_that_raises_leaves_nobody_waiting(
    llm: LLM, right: list[int], often: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of a batch: it hears of its error, and those after it get their answers."""
    real, tries = ChoiceState._piece, itertools.count()

    def piece(choice: ChoiceState, text: str, reasoning: str) -> Any:
        if choice.request.params.seed == 5 and next(tries) < often:
            raise RuntimeError("the text is torn")
        return real(choice, text, reasoning)

    monkeypatch.setattr(ChoiceState, "_piece", piece)
    torn = Caller(lambda: list(llm.stream("one two", TEN.model_copy(update={"seed": 5}))))
    others = [Caller(lambda: list(llm.stream("one two", TEN))) for _ in range(2)]
    assert all(one.ended(WAIT) for one in (torn, *others))
    assert isinstance(torn.error, RuntimeError) and "the text is torn" in str(torn.error)
    for one in others:
        assert one.error is None and one.value[-1].output.token_ids == right
    assert well(llm, right)


def test_close_from_a_listener_does_not_wait_for_itself(folder: Path) -> None:
    llm = open_llm(folder, **OPTIONS)
    options = GenerateOptions(sampling=TEN)
    ([[request]], _) = llm._parts.builder.build("one two", options, time.monotonic())
    request.listener = lambda _: llm._worker.close()
    llm._worker.submit([request])
    llm._worker._thread.join(WAIT)
    assert llm._worker.ended


def calls(llm: LLM) -> list[Callable[[], Any]]:
    """Callers of every kind."""

    def leave() -> None:
        list(islice(llm.stream("one two", TEN), 2))

    fixed = [Speculation(drafter=drafter, nodes=4) for drafter in ("suffix", "self")]
    drafts: list[SpeculationLike] = [*fixed, "suffix"]
    return [
        lambda: llm.generate(["one two"] * 3, LONG, speculation=drafts),
        lambda: llm.generate("one two", TEN, mode=AGAIN),
        lambda: llm.generate(["one two", "tell me"], TEN, mode=[ON, OVER], speculation="off"),
        lambda: llm.generate("one two", TEN, mode=QUICK),
        lambda: list(llm.stream("one two", TEN, mode=AGAIN))[-1].output,
        lambda: list(llm.stream("tell me " * 12, TEN, speculation="self"))[-1].output, leave, llm.forget_prompts,
    ]  # fmt: skip


def outputs(value: Any) -> list[Output]:
    return [one for one in (value if isinstance(value, list) else [value]) if one is not None]


def run(folder: Path, right: list[int], failure: Failure | None, first: int = 0) -> Injected:
    """All callers at once, the `first` one first, and one failure among them."""
    with pytest.MonkeyPatch.context() as patch:
        llm = open_llm(folder, **OPTIONS)
        assert llm.generate("one two", LONG).token_ids[:10] == right  # to draft from
        injected = inject(llm, patch)
        injected.failure = failure
        todo = calls(llm)
        asked = [Caller(call) for call in todo[first:] + todo[:first]]
        after = f"after {failure}"
        for one in asked:
            assert one.ended(WAIT), f"a caller still waits {after}"
            if one.error is None:
                for output in outputs(one.value):
                    assert output.finish_reason == "length", after
            else:
                assert failure is not None and injected.fired, after
                assert type(failure.error).__name__ in str(one.error) or "injected" in str(one.error), after
        # in a pause pages are looked at
        time.sleep(0.2 if failure is None or "integrity" in failure.name else 0)
        injected.failure = None
        try:
            assert well(llm, right), f"pages are lost {after}"
        except RuntimeError as error:
            assert str(error).startswith("this LLM is broken ("), after
        closing = Caller(llm.close)
        assert closing.ended(WAIT) and closing.error is None, after
    return injected


ERRORS = (RuntimeError, KeyError, MemoryError, SystemExit, KeyboardInterrupt)
SCHEDULES = 200
SOON = 5  # of them always run


def schedule(seed: int, counts: dict[str, int]) -> tuple[Failure, int]:
    """A failure at any call that was counted, of any kind; and who calls first."""
    draws = random.Random(seed)
    name = sorted(counts)[seed % len(counts)]
    error = draws.choice(ERRORS)("injected")
    stays = draws.random() < 0.3 and name not in LISTENERS
    return Failure(name, draws.randint(1, counts[name]), error, stays), draws.randrange(8)


@pytest.fixture(scope="module")
def counts(folder: Path, right: list[int]) -> dict[str, int]:
    """Count how often each call is made where nothing fails."""
    return dict(run(folder, right, None).counts)


def test_the_calls_are_known(counts: dict[str, int]) -> None:
    parts = {name.partition(".")[0] for name in counts}
    assert parts >= {"scheduler", "latency_budget", "kv", "drafter", "model", "cost_model", "step"}
    assert parts >= {"FixedLength", "AdaptiveLength", "Stopper", "Request", "ChoiceState"} and len(counts) > 40


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.slow] * (n >= SOON)) for n in range(SCHEDULES)])
def test_no_caller_waits_long_whatever_fails(folder: Path, right: list[int], counts: dict[str, int], seed: int) -> None:
    failure, first = schedule(seed, counts)
    run(folder, right, failure, first)
