"""Handles of submitted prompts: waiting, cancelling, timeouts, event loops, streams that are left."""

import asyncio
import gc
import math
import threading
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gate import SOON, Gate, SlowTokenizer, later, open_llm, settled, slowly
from refusals import refused

from fastslow import LLM, Escalation, GenerationError, Mode, Output, Piece, RequestHandle, SamplingParams, as_completed
from fastslow.request.options import GenerateOptions

TEN = SamplingParams(max_tokens=10, ignore_eos=True)
LONG = SamplingParams(max_tokens=400, ignore_eos=True)


async def awaited(handle: Awaitable[Output]) -> Output:
    return await handle


def test_a_handle_gives_what_generate_gives(llm: LLM) -> None:
    for prompt in ("The quick", [5, 6, 7], [{"role": "user", "content": "hello"}]):
        handle = llm.submit(prompt, TEN, mode="fast")
        out = handle.result(SOON)
        assert out.token_ids == llm.generate(prompt, TEN, mode="fast").token_ids
        assert handle.done and handle.result() is out
        handle.cancel()  # too late, and no harm
        assert handle.result() is out
    assert len(llm.submit("The", SamplingParams(max_tokens=4, n=3, temperature=1.0)).result(SOON).choices) == 3


def test_a_wait_that_is_over_does_not_end_the_request(llm: LLM, gate: Gate) -> None:
    handle = llm.submit("The quick", TEN)
    with pytest.raises(TimeoutError, match="^no answer within 0.01 s; the request still runs$"):
        handle.result(timeout=0.01)
    with pytest.raises(TimeoutError, match="^1 of 1 answers are not there within 0.01 s"):
        next(as_completed([handle], timeout=0.01))
    assert not handle.done
    gate.open()
    assert handle.result(SOON).finish_reason == "length"


def test_pieces_of_a_handle_join_to_the_answer(llm: LLM, gate: Gate) -> None:
    handle = llm.submit("The quick", TEN, speculation="off")
    assert gate.reached.acquire(timeout=SOON)
    gate.steps(4)
    pieces = iter(handle)  # pieces are made from here on
    gate.steps()
    first = next(pieces)
    assert len(first.token_ids) == 5, "the first one holds all that was there"
    gate.open()
    *others, last = pieces
    out = handle.result(SOON)
    assert last.output is out and all(len(piece.token_ids) <= 1 for piece in others)
    assert [t for piece in (first, *others) for t in piece.token_ids] == out.token_ids
    assert "".join(piece.text for piece in (first, *others)) == out.text
    assert list(handle) == [], "all pieces were taken"


@pytest.mark.drafts(60, 3)
@pytest.mark.parametrize("wish", ["off", {"drafter": "self", "groups": 3}], ids=str)
def test_pieces_of_n_answers_mix(llm: LLM, wish: Any) -> None:
    params = SamplingParams(max_tokens=40, n=3, temperature=1.0, seed=5, logprobs=1, stop_token_ids=list(range(80)))
    whole = llm.generate("The quick", params, speculation=wish)
    assert len({len(choice.token_ids) for choice in whole.choices}) > 1, "they end in different steps"

    async def in_a_loop() -> list[Piece]:
        return [piece async for piece in llm.submit("The quick", params, speculation=wish)]

    done = llm.submit("The quick", params, speculation=wish)
    done.result(SOON)
    for *pieces, last in (
        list(llm.stream("The quick", params, speculation=wish)),
        list(llm.submit("The quick", params, speculation=wish)), asyncio.run(in_a_loop()), list(done),
    ):  # fmt: skip
        assert last.output is not None and not last.token_ids and all(piece.output is None for piece in pieces)
        for index, choice in enumerate(whole.choices):
            assert last.output.choices[index].token_ids == choice.token_ids
            mine = [piece for piece in pieces if piece.index == index]
            assert "".join(piece.text for piece in mine) == choice.text
            assert [t for piece in mine for t in piece.token_ids] == choice.token_ids
            assert [p for piece in mine for p in piece.logprobs or ()] == choice.logprobs


def test_an_answer_that_is_over_is_streamed_before_the_others_end(llm: LLM, gate: Gate) -> None:
    """A stop text may be held back: what is left of it comes when that answer ends."""
    handle = llm.submit([5, 6], SamplingParams(max_tokens=6, n=2, ignore_eos=True), speculation="off")
    assert gate.reached.acquire(timeout=SOON)
    pieces = iter(handle)
    first = handle._group._choices[0]
    first.request.stopper.finish("length")  # as though it had met its own end
    gate.steps()
    both = [next(pieces) for _ in range(2)]
    assert {piece.index for piece in both} == {0, 1} and first.over and not handle.done
    gate.open()
    *_, last = pieces
    assert last.output is not None and [len(choice.token_ids) for choice in last.output.choices][1] == 6


def test_cancelling_gives_the_answer_so_far(llm: LLM, gate: Gate) -> None:
    handle = llm.submit("The quick", LONG, speculation="off")
    assert gate.reached.acquire(timeout=SOON)
    gate.steps(3)
    handle.cancel()
    gate.open()
    out = handle.result(SOON)
    assert out.finish_reason == "cancelled" and 3 <= len(out.token_ids) < 400
    whole = llm.generate("The quick", TEN, speculation="off")
    assert out.token_ids == whole.token_ids[: len(out.token_ids)] and out.text


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_that_is_left_gives_the_answer_so_far(llm: LLM, n: int) -> None:
    params = LONG.model_copy(update={"n": n})
    for taken in (0, 1):
        stream = llm.stream("The quick", params, speculation="off")
        assert all(next(stream).token_ids for _ in range(taken)) and stream.output is None
        stream.close()
        assert stream.output is not None and list(stream) == [] and settled(llm)
        assert [choice.finish_reason for choice in stream.output.choices] == ["cancelled"] * n
        assert bool(stream.output.token_ids) == bool(taken)


def test_a_handle_that_is_dropped_runs_on(llm: LLM, gate: Gate) -> None:
    before = llm.stats().ended.get("length", 0)
    llm.submit("The quick", TEN)
    gc.collect()
    gate.open()
    deadline = time.monotonic() + SOON
    while llm.stats().ended.get("length", 0) == before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert llm.stats().ended["length"] == before + 1


def test_a_stream_may_be_closed_from_another_thread(llm: LLM, gate: Gate) -> None:
    stream = llm.stream("The quick", LONG, speculation="off")
    pieces: list[Piece] = []
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    assert gate.reached.acquire(timeout=SOON)
    gate.steps(2)
    stream.close()  # the reader waits inside `next`
    gate.open()
    reader.join(SOON)
    assert not reader.is_alive() and stream.output is not None and stream.output.finish_reason == "cancelled"
    assert all(piece.output is None for piece in pieces)


def test_a_prompt_may_be_over_before_it_is_tokenised(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowTokenizer(llm, monkeypatch)
    handle, late = llm.submit("The quick", TEN), llm.submit("The quick", TEN, timeout=0.05)
    assert slow.reached.wait(SOON)
    handle.cancel()
    time.sleep(0.06)  # a timeout counts from the call
    slow.go.set()
    out = handle.result(SOON)
    assert (out.finish_reason, out.token_ids, out.prompt) == ("cancelled", [], "The quick")
    out = late.result(SOON)
    assert (out.finish_reason, out.token_ids) == ("timeout", [])


def test_a_request_that_is_cancelled_on_its_way_never_runs(llm: LLM) -> None:
    handle = RequestHandle.of("submit", "The", GenerateOptions(sampling=TEN), llm._parts)
    handle._group.prepare()
    requests = [choice.request for choice in handle._group.queue()]
    steps = llm.stats().steps
    llm._worker.cancel(requests)  # overtakes what another thread submits
    llm._worker.submit(requests)
    out = handle.result(SOON)
    assert settled(llm) and llm.stats().steps == steps
    assert (out.finish_reason, out.token_ids) == ("cancelled", [])


def test_what_raises_at_once_and_what_later(llm: LLM) -> None:
    wrong: list[tuple[Any, dict[str, Any]]] = [([400], {"mode": "dep"}), (["one", "two"], {})]
    for prompt, options in wrong:
        with pytest.raises(ValueError):
            llm.submit(prompt, **options)
    later = llm.submit("a\ud800b")
    for ask in (later.result, lambda: list(later), lambda: asyncio.run(awaited(later))):
        refused("lone surrogate", ask)
    with pytest.raises(ValueError, match="is unknown; did you mean 'ngram'"):
        llm.submit("hello", speculation="ngarm").result(SOON)


def test_an_engine_that_fails(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(llm.model, "forward", fail)
        handle = llm.submit("hello", TEN)
        for ask in (handle.result, lambda: list(handle), lambda: asyncio.run(awaited(handle))):
            with pytest.raises(GenerationError, match="^the request failed: the device is gone$"):
                ask()
    assert list(handle) == [] and settled(llm)
    assert llm.submit("hello", TEN).result(SOON).finish_reason == "length"


def test_awaiting(llm: LLM) -> None:
    async def main() -> None:
        one = await llm.submit("The quick", TEN)
        assert one.token_ids == llm.generate("The quick", TEN).token_ids
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(awaited(llm.submit([6, i], TEN))) for i in range(20)]
        assert [task.result().prompt_token_ids for task in tasks] == [[6, i] for i in range(20)]
        handle = llm.submit("The quick", TEN, speculation="off")
        pieces = [piece async for piece in handle]
        assert pieces[-1].output is await handle and "".join(piece.text for piece in pieces) == one.text
        left = llm.submit("The quick", LONG)
        async for _ in left:
            break
        assert (await left).finish_reason == "cancelled"

    asyncio.run(main())


def test_no_thread_waits_for_a_request(llm: LLM, gate: Gate) -> None:
    async def main() -> None:
        before = threading.active_count()
        tasks = [asyncio.ensure_future(llm.submit([5, i], TEN)) for i in range(50)]
        await asyncio.sleep(0.05)
        assert threading.active_count() <= before + 2  # which tokenise
        gate.open()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_the_loop_runs_while_a_long_prompt_is_tokenised(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowTokenizer(llm, monkeypatch)

    async def main() -> None:
        handle = llm.submit("The quick", TEN)  # would wait for ever inside the loop
        assert (await llm.submit([5, 6], TEN)).finish_reason == "length", "others are answered"
        assert not handle.done
        slow.go.set()
        assert (await handle).prompt == "The quick"

    asyncio.run(main())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_loop_that_waits_no_longer_cancels_the_request(llm: LLM, gate: Gate, streamed: bool) -> None:
    async def main() -> None:
        handle = llm.submit("The", LONG)
        assert await asyncio.to_thread(gate.reached.acquire, timeout=SOON)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                _ = [piece async for piece in handle] if streamed else await handle
        assert not llm._core.idle
        gate.open()

    before = llm.stats().ended.get("cancelled", 0)
    asyncio.run(main())
    assert settled(llm) and llm.stats().ended["cancelled"] == before + 1


def test_two_loops_wait_for_one_handle(llm: LLM, gate: Gate) -> None:
    handle = llm.submit("The quick", TEN)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(asyncio.run, awaited(handle)) for _ in range(2)]
        jobs.append(pool.submit(handle.result))
        time.sleep(0.05)
        gate.open()
        first, *others = [job.result(SOON) for job in jobs]
    assert all(out is first for out in others)


def test_a_timeout_ends_what_runs_and_what_waits(folder: Path, monkeypatch: Any) -> None:
    with open_llm(folder, max_running=1) as llm:
        whole = llm.generate([5, 6], TEN, timeout=60).token_ids
        gate = Gate(llm, monkeypatch)
        runs = llm.submit([5, 6], LONG, timeout=600, speculation="off")
        assert gate.reached.acquire(timeout=SOON)
        waits = llm.submit([5, 7], TEN, timeout=500)
        gate.steps(3)
        later(monkeypatch, 600)
        gate.open()
        out = runs.result(SOON)
        assert out.finish_reason == "timeout" and 3 <= len(out.token_ids) <= 4
        assert out.token_ids == whole[: len(out.token_ids)] and out.text
        out = waits.result(SOON)
        assert (out.finish_reason, out.token_ids, out.metrics.steps) == ("timeout", [], 0) and settled(llm)


def test_a_timeout_in_the_other_calls(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.model, "forward", slowly(llm.model.forward))
    first, second = llm.generate(["The", "quick"], [TEN, LONG], timeout=[None, 0.1])
    assert (first.finish_reason, second.finish_reason) == ("length", "timeout")
    assert llm.chat("The", LONG, timeout=0.1).finish_reason == "timeout"
    *_, last = llm.stream("The", LONG, timeout=0.1)
    assert last.output is not None and last.output.finish_reason == "timeout"


def test_a_timeout_of_the_second_mode(llm: LLM, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    doubt = Mode(groups=0, escalate=Escalation(below=1.0, window=1, how="restart"))
    handle = llm.submit([5, 6], LONG, mode=doubt, timeout=600, speculation="off")
    assert gate.reached.acquire(timeout=SOON)
    gate.steps(3)  # one of the first mode, then it began again
    later(monkeypatch, 600)
    gate.open()
    out = handle.result(SOON)
    assert out.finish_reason == "timeout" and out.metrics.escalated_at == 1


def test_results_as_they_complete(llm: LLM, gate: Gate) -> None:
    slow, quick = llm.submit([5], LONG, speculation="off"), llm.submit([6], TEN)
    over = as_completed([slow, quick, slow])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, over)
        gate.steps()
        while not first.done():
            gate.steps()
        assert first.result() is quick and not slow.done
        gate.open()
        assert list(over) == [slow]
    assert list(as_completed([])) == []


@pytest.mark.parametrize("timeout", ["x", True, math.nan, 10**400], ids=lambda x: str(x)[:9])
def test_a_wait_takes_seconds(llm: LLM, timeout: Any) -> None:
    handle = llm.submit("The quick", TEN)
    wrong = "^timeout=.* must be seconds, at most 1e.09, or None$"
    refused(wrong, handle.result, timeout)
    refused(wrong, list, as_completed([handle], timeout))
    refused("^handles holds 5, which is no RequestHandle$", list, as_completed([handle, 5]))  # type: ignore[list-item]
    assert list(as_completed([handle], 1e9)) == [handle] and handle.result(-1).finish_reason == "length"
