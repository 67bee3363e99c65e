"""`AsyncLLM`: many callers in an event loop, a bounded queue, leaving and cancelling at any await, draining."""

import asyncio
import gc
import pickle
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from gate import SOON, Gate, SlowTokenizer, settled
from refusals import refused

from fastslow import LLM, AsyncLLM, Busy, Piece, RequestHandle, SamplingParams
from fastslow.admission import Admission

OPTIONS = {"max_running": 2}
TEN = SamplingParams(max_tokens=10, ignore_eos=True)
LONG = SamplingParams(max_tokens=400, ignore_eos=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not true():
            await asyncio.sleep(0.005)


def test_it_answers_as_an_llm_does(llm: LLM) -> None:
    async def main() -> None:
        served = AsyncLLM.around(llm)
        out = await served.generate("The quick", TEN, mode="fast")
        assert out.token_ids == llm.generate("The quick", TEN, mode="fast").token_ids
        pieces = [piece async for piece in served.stream("The quick", TEN, mode="fast")]
        assert "".join(piece.text for piece in pieces) == out.text
        chat = await served.chat("The quick", TEN)
        *_, last = [piece async for piece in served.stream_chat("The quick", TEN)]
        assert last.output is not None
        assert chat.token_ids == last.output.token_ids == llm.chat("The quick", TEN).token_ids
        many = await asyncio.gather(*(served.generate([5, i], TEN) for i in range(30)))
        assert [out.prompt_token_ids for out in many] == [[5, i] for i in range(30)]
        assert served.answers == 0 and served.stats().ended["length"] >= 30

    asyncio.run(main())
    assert settled(llm)


def test_closing_while_the_model_loads_lets_it_go(folder: Path) -> None:
    async def main() -> None:
        served = AsyncLLM(folder, kv_memory="4MiB", progress=False)
        entering = asyncio.create_task(served.__aenter__())
        await asyncio.sleep(0)
        await served.close()
        with pytest.raises(RuntimeError, match="closed before its model was loaded"):
            await entering
        assert "closed" in repr(served.llm)

    asyncio.run(main())


def test_a_handle_is_not_pickled(llm: LLM) -> None:
    handle = llm.submit([5], TEN)
    with pytest.raises(TypeError, match="^an answer in the making cannot be pickled"):
        pickle.dumps(handle)
    handle.result()


def test_it_is_loaded_in_a_thread_and_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, ticked = AsyncLLM._load, threading.Event()

    def after_a_tick(served: AsyncLLM, loading: Any) -> None:
        ticked.wait(SOON)
        load(served, loading)

    async def main() -> None:
        unloaded = AsyncLLM(folder)
        assert not unloaded.accepting
        with pytest.raises(RuntimeError, match="^this AsyncLLM is not loaded: use `async with"):
            await unloaded.generate("The")
        monkeypatch.setattr(AsyncLLM, "_load", after_a_tick)
        asyncio.get_running_loop().call_later(0.01, ticked.set)
        async with AsyncLLM(folder, kv_memory="4MiB", progress=False) as served:
            assert ticked.is_set(), "the loop ran on"
            assert (await served.generate("The", TEN)).finish_reason == "length"
        assert not served.accepting
        await served.close()
        with pytest.raises(RuntimeError, match="^this AsyncLLM takes no more requests"):
            served.submit("The")
        refused("did you mean 'max_running'", AsyncLLM, folder, max_runing=3)
        refused("^max_waiting=-1 must be greater than or equal to 0$", AsyncLLM, folder, max_waiting=-1)

    asyncio.run(main())


def test_leaving_in_any_way_cancels(llm: LLM, gate: Gate) -> None:
    async def main() -> None:
        served = AsyncLLM.around(llm)
        async for _ in served.stream("The quick", LONG, speculation="off"):
            break
        await until(lambda: served.answers == 0)
        await served.stream("The quick", LONG, speculation="off").aclose()
        await until(lambda: served.answers == 0)
        dropped = served.stream("The quick", LONG)
        del dropped
        gc.collect()
        await until(lambda: served.answers == 0)

    before = llm.stats().ended.get("cancelled", 0)
    gate.open()
    asyncio.run(main())
    assert settled(llm) and llm.stats().ended["cancelled"] >= before + 1


CALLS: dict[str, Callable[[AsyncLLM, RequestHandle], Awaitable[object]]] = {
    "generate": lambda served, _: served.generate("The", LONG), "chat": lambda served, _: served.chat("The", LONG),
    "next piece": lambda served, _: anext(served.stream("The", LONG)),
    "forget_prompts": lambda served, _: served.forget_prompts(),
    "stop_thinking": lambda served, running: served.stop_thinking(running),
    "drain": lambda served, _: served.drain(None), "close": lambda served, _: served.close(),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_cancelled_ends_nobody_else(
    llm: LLM, name: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        served, left = AsyncLLM.around(llm), threading.Event()
        if name == "close":
            monkeypatch.setattr(llm, "close", lambda: left.wait(SOON))
        bystander = served.submit("quick", LONG)
        await asyncio.to_thread(gate.reached.acquire, timeout=SOON)  # inside a step
        task = asyncio.ensure_future(CALLS[name](served, bystander))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left.set()
        gate.open()
        out = await asyncio.wait_for(bystander, SOON)
        assert out.finish_reason == "length" and len(out.token_ids) == 400

    asyncio.run(main())
    assert settled(llm) and llm.generate("The", TEN, progress=False).finish_reason == "length"


def test_a_full_queue_says_so_before_anything_is_done(llm: LLM, gate: Gate) -> None:
    async def main() -> None:
        served = AsyncLLM.around(llm, max_waiting=1)  # and two run
        first, second = served.submit([5, 6], LONG), served.submit([5, 7], TEN)
        await until(lambda: gate.reached.acquire(blocking=False))
        several = SamplingParams(n=2, max_tokens=4)
        with pytest.raises(Busy, match="^2 answers are being made or wait, and at most 3 may: try"):
            served.submit([5, 8], several)
        third = served.submit([5, 8], TEN)
        built: list[object] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(llm._parts.builder, "build", built.append)
            with pytest.raises(Busy) as busy:
                served.stream([5, 9], TEN)
            assert busy.value.retry_after > 0 and not built
        with pytest.raises(ValueError, match="^n=4 is more than the 3 answers"):
            await served.generate([5], SamplingParams(n=4))
        with pytest.raises(ValueError, match="^prompt"):
            await served.generate(5)  # type: ignore[call-overload]
        first.cancel()
        gate.open()
        await first
        await until(lambda: served.answers < 3)
        outs = [await second, await third, await served.generate([5, 9], TEN)]
        assert all(out.finish_reason == "length" for out in outs)
        await until(lambda: served.answers == 0)

    asyncio.run(main())


def test_prompts_that_are_tokenised_count(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowTokenizer(llm, monkeypatch)

    async def main() -> None:
        served = AsyncLLM.around(llm, max_waiting=0)
        handles = [served.submit("The quick", TEN) for _ in range(2)]
        with pytest.raises(Busy):
            served.submit([5, 6], TEN)
        slow.go.set()
        await asyncio.gather(*handles)
        await until(lambda: served.answers == 0)
        bad = served.submit("a\ud800b")
        with pytest.raises(ValueError, match="lone surrogate"):
            await bad
        await until(lambda: served.answers == 0)  # what is refused counts no more

    asyncio.run(main())


def test_when_to_ask_again() -> None:
    now = [100.0]
    admission = Admission(2, 2, lambda: now[0])
    for _ in range(4):
        admission.enter(1)
    with pytest.raises(Busy) as busy:
        admission.enter(1)
    assert busy.value.retry_after == 1.0, "nothing is known yet"
    for now[0] in (101.0, 103.0):
        admission.leave(1)
        admission.enter(1)
    with pytest.raises(Busy) as busy:
        admission.enter(2)
    assert busy.value.retry_after == pytest.approx(2 * 2.0 / 2)
    now[0] = 105.0
    with pytest.raises(Busy) as busy:
        admission.enter(3)
    assert busy.value.retry_after == pytest.approx(3 * 4.0 / 2), "two ended in four seconds"
    assert pickle.loads(pickle.dumps(busy.value)).retry_after == busy.value.retry_after
    now[0] = 1e6
    with pytest.raises(Busy, match="try again in 60.0 seconds$"):
        admission.enter(1)


def test_a_caller_with_many_answers_keeps_out_nobody() -> None:
    admission = Admission(64, 256)
    took = 0
    with pytest.raises(Busy, match=r"at most 256 may \(the rest is kept for callers with few\)"):
        while True:
            admission.enter(16, "greedy")
            took += 16
    assert took == admission.answers == 256
    for n in range(20):
        for _ in range(3):
            admission.enter(1, f"modest {n}")
    admission.enter(4, "several")
    with pytest.raises(Busy, match="at most 320 may: try"):
        admission.enter(1, "late")
    admission.leave(16, "greedy")
    with pytest.raises(Busy):
        admission.enter(1, "greedy")
    admission.enter(16, "late")
    with pytest.raises(Busy):
        admission.enter(1, None)
    for n in range(20):
        admission.leave(3, f"modest {n}")
    admission.enter(1, None)


def test_a_call_names_its_share(llm: LLM, gate: Gate) -> None:
    async def main() -> None:
        served = AsyncLLM.around(llm, max_waiting=4)  # and two run
        handles = [served.submit([5, n], TEN, share="greedy") for n in range(5)]
        with pytest.raises(Busy):
            served.submit([5, 6], TEN, share="greedy")
        handles.append(served.submit([5, 6], TEN, share="modest"))
        gate.open()
        await asyncio.gather(*handles)
        await until(lambda: served.answers == 0)

    asyncio.run(main())


@pytest.mark.parametrize(("seconds", "params", "reason"), [(None, TEN, "length"), (0.05, LONG, "cancelled")])
def test_draining_lets_what_runs_finish_and_then_cancels(
    llm: LLM, gate: Gate, seconds: float | None, params: SamplingParams, reason: str
) -> None:
    async def main() -> None:
        served = AsyncLLM.around(llm)
        handles = [served.submit([5, i], params) for i in range(3)]
        draining = asyncio.create_task(served.drain(seconds))
        await asyncio.sleep(0.1)
        assert not draining.done() and not served.accepting
        with pytest.raises(RuntimeError, match="takes no more requests"):
            served.stream("The")
        gate.open()
        async with asyncio.timeout(SOON):
            await draining
        assert all(handle.result(0).finish_reason == reason for handle in handles)
        with pytest.raises(ValueError, match="^timeout="):
            await served.drain("x")  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_step_wakes_a_loop_once(llm: LLM, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        served = AsyncLLM.around(llm)
        got: list[Piece] = []

        async def read(token: int) -> None:
            async for piece in served.stream([5, token], LONG, speculation="off"):
                got.append(piece)

        async def step() -> None:
            gate._passes.release()
            await until(lambda: gate.reached.acquire(blocking=False))

        tasks = [asyncio.create_task(read(token)) for token in (6, 7)]
        await until(lambda: gate.reached.acquire(blocking=False))
        while llm.stats().running < 2 or len(got) < 3:  # both streamed their first token
            await step()
            await asyncio.sleep(0.005)
        loop, calls = asyncio.get_running_loop(), 0
        call = loop.call_soon_threadsafe

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += threading.current_thread() is not threading.main_thread()
            return call(*arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        got.clear()
        await step()
        await until(lambda: len(got) >= 2)
        assert calls == 1
        gate.open()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(main())


def test_a_model_whose_loading_is_cancelled_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[LLM] = []
    begun, go = threading.Event(), threading.Event()
    real = LLM.__init__

    def slow(self: LLM, *arguments: object, **options: object) -> None:
        begun.set()
        assert go.wait(SOON)
        real(self, *arguments, **options)  # type: ignore[arg-type]
        loaded.append(self)

    monkeypatch.setattr(LLM, "__init__", slow)

    async def main() -> None:
        task = asyncio.create_task(AsyncLLM.load(folder, kv_memory="4MiB", progress=False))
        await asyncio.to_thread(begun.wait, SOON)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    asyncio.run(main())
    end = time.monotonic() + SOON
    while not (loaded and loaded[0]._worker.ended):
        assert time.monotonic() < end, "the engine's thread still runs"
        time.sleep(0.01)
