"""The engine in this process and the one in its own behave alike."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_engines import living
from refusals import refused
from requests_made import made_request
from serve_engines import LONG, answer_of, asked, first_of, idle, pieces_of, settings_of, until

from fastslow.serve.api.engine import Busy, Engine, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.client import EngineClient, Restarts

Run = Callable[[Any], Any]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


async def started(kind: str, folder: Path) -> Engine:
    if kind == "local":
        return await settings_of(folder).open()
    engine = EngineClient(settings_of(folder), Restarts(most=3, first=0.01))
    with pytest.raises(NotReady, match="the model is loading"):
        print(engine.card)
    await engine.start()
    return engine


KINDS = ["local", "process"]


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, runner: asyncio.Runner, folder: Path) -> Iterator[Engine]:
    engine = runner.run(started(request.param, folder))
    yield engine
    runner.run(engine.close())


@pytest.fixture(scope="module")
def other(runner: asyncio.Runner, folder: Path) -> Iterator[Engine]:
    """An engine in this process, to compare with."""
    engine = runner.run(started("local", folder))
    yield engine
    runner.run(engine.close())


@pytest.fixture
def run(runner: asyncio.Runner) -> Run:
    """Runs a coroutine, which fails where it takes longer than five minutes."""
    return lambda what: runner.run(asyncio.wait_for(what, 300))


def test_an_answer_continues_after_what_another_engine_made(engine: Engine, other: Engine, run: Run) -> None:
    whole = run(answer_of(other, asked(tokens=12, mode="auto", sampling={"n": 2, "seed": 3})))
    decided = run(first_of(other, asked(tokens=12, mode="auto"))).decided
    assert decided is not None
    fields = {"tokens": [one.token_ids[:5] for one in whole.choices], "decided": [list(decided), list(decided)]}
    ask = asked(tokens=12, mode="auto", sampling={"n": 2, "seed": 3}, answered=fields)
    *pieces, last = run(pieces_of(engine, ask))
    assert [one.token_ids for one in last.output.choices] == [c.token_ids for c in whole.choices]
    assert [one.text for one in last.output.choices] == [c.text for c in whole.choices]
    assert {piece.index: piece.decided for piece in pieces if piece.decided} == {0: decided, 1: decided}
    for wrong in ({}, {"tokens": [[5], [6], [7]]}):
        with pytest.raises(ValueError, match="answered.tokens"):
            run(pieces_of(engine, asked(answered=wrong)))


def test_all_fields_of_an_ask_arrive(engine: Engine, other: Engine, run: Run) -> None:
    ask = made_request(
        id="all", prompt=[{"role": "user", "content": "one two three"}],
        sampling={"max_tokens": 6, "temperature": 0.8, "seed": 3, "logprobs": 2, "stop": ["zz"]},
        mode={"base": "fast", "groups": 1}, speculation={"drafter": "self", "nodes": 2}, timeout=60.0,
        memory_key="me", chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    output, right = run(answer_of(engine, ask)), run(answer_of(other, ask))
    assert output.token_ids == right.token_ids
    assert [set(place) for place in output.logprobs] == [set(p) for p in right.logprobs]
    assert output.metrics.mode == right.metrics.mode and output.metrics.drafter == "self"


def test_priority_decides_who_waits(engine: Engine, run: Run) -> None:
    """All places are taken; of two that wait, the later and more urgent one is answered first."""

    async def order() -> list[str]:
        ended: list[str] = []

        async def answered(id: str, priority: int) -> None:
            await answer_of(engine, asked(id, priority=priority))
            ended.append(id)

        crowd = [asyncio.create_task(answer_of(engine, asked(str(n), LONG))) for n in range(16)]
        await until(lambda: counted(engine, "running", 16))
        first = asyncio.create_task(answered("usual", 0))
        await until(lambda: counted(engine, "waiting", 1))
        second = asyncio.create_task(answered("urgent", -5))
        await until(lambda: counted(engine, "waiting", 2))
        assert await engine.cancel("0")
        await asyncio.gather(first, second)
        for n in range(1, 16):
            await engine.cancel(str(n))
        await asyncio.gather(*crowd)
        await until(lambda: idle(engine))
        return ended

    assert run(order()) == ["urgent", "usual"]


async def counted(engine: Engine, what: str, count: int) -> bool:
    return bool((await engine.stats())[what] == count)


def test_thoughts_stay_in_the_prompt(engine: Engine, run: Run) -> None:
    said = {"role": "assistant", "content": "two", "reasoning_content": "a thought"}
    chat = [{"role": "user", "content": "one"}, said, {"role": "user", "content": "three"}]
    texts = [
        run(engine.detokenize(run(engine.tokenize(asked(prompt=chat, keep_thoughts=keep))))) for keep in (False, True)
    ]
    assert "a thought" not in texts[0] and "<think>a thought</think>two" in texts[1]


@pytest.mark.parametrize(("ask", "said"), [
    (asked(mode="dep"), "mode='dep' is unknown; did you mean 'deep'"), (asked(sampling={"top_p": 5}), "top_p=5"),
    (asked(prompt=[999999]), "999999"), (asked(prompt="one " * 9000), "4096"),
    (asked(sampling={"seed": 2**70}), "seed=|64 bits"), (asked(prompt="one \ud800"), "."),
])  # fmt: skip
def test_what_does_not_fit_is_a_value_error(engine: Engine, ask: GenerateRequest, said: str, run: Run) -> None:
    refused(said, run, pieces_of(engine, ask))
    assert len(run(answer_of(engine, asked())).token_ids) == 8


def test_prompts_and_tokens_as_text(engine: Engine, run: Run) -> None:
    tokens = run(engine.tokenize(asked(prompt="one two")))
    assert run(engine.detokenize(tokens)) == "one two"
    refused("99999", run, engine.detokenize([99999]))
    refused("'dep' is unknown", run, engine.tokenize(asked(mode="dep")))
    parts = run(engine.token_bytes([*tokens, 2]))
    assert b"".join(data for data, shown in parts if shown) == b"one two"
    assert parts[-1] == (b"<|im_end|>", False)


def test_a_full_queue_is_busy(engine: Engine, run: Run) -> None:
    async def crowd() -> Busy:
        tasks = [asyncio.create_task(answer_of(engine, asked(str(n), LONG))) for n in range(40)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        busy = [error for task in done if isinstance(error := task.exception(), Busy)]
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: has_room(engine))
        await until(lambda: idle(engine))
        return busy[0]

    assert run(crowd()).retry_after > 0


async def has_room(engine: Engine) -> bool:
    """True where a request is accepted: cancelled ones may hold places for a moment, also where `stats` no longer
    counts them."""
    try:
        await answer_of(engine, asked(tokens=1))
    except Busy:
        return False
    return True


def test_a_grammar_that_becomes_too_complex_is_its_clients_fault(engine: Engine, run: Run) -> None:
    wild = {"regex": "((((a{1,999}){1,999}){1,999}){1,999}){999}"}
    for streamed in (True, False):
        ask = asked(tokens=60, sampling={"grammar": wild}, mode="fast", streamed=streamed)
        refused("the grammar stopped: ", run, pieces_of(engine, ask))


@pytest.mark.parametrize("engine", ["process"], indirect=True)
def test_a_killed_engine_is_told_of_and_comes_back(engine: Engine, run: Run, logged: list[str]) -> None:
    assert isinstance(engine, EngineClient)

    async def killed() -> None:
        right = (await answer_of(engine, asked())).token_ids
        tasks = [asyncio.create_task(answer_of(engine, asked(str(n), LONG))) for n in range(3)]
        link, first = engine._connection, engine.pid
        assert link is not None and first is not None
        await until(lambda: link.answering == 3)
        os.kill(first, signal.SIGKILL)
        for task in tasks:
            with pytest.raises(NotReady, match="the engine ended in the middle of the request"):
                await task
        assert not engine.ready and "started again" in engine.why_not_ready
        assert engine.card.name == "tiny"  # which is known
        with pytest.raises(NotReady, match="started again"):
            await answer_of(engine, asked())
        with pytest.raises(NotReady, match="started again"):
            await engine.stats()
        assert link.answering == 0
        await until(lambda: engine.ready)
        assert engine.pid != first and not living([first])
        assert (await answer_of(engine, asked())).token_ids == right

    run(killed())
    said = "".join(logged)
    assert "the engine's process was killed by SIGKILL; a new one starts in 0.01 s" in said
    assert "the engine is back" in said


async def closed(engine: Engine, drain: float, tokens: int) -> str | None:
    """The finish reason of an answer whose engine is closed."""
    task = asyncio.create_task(answer_of(engine, asked(tokens=tokens)))
    await until(lambda: counted(engine, "running", 1))
    close = asyncio.create_task(engine.close(drain))
    await asyncio.sleep(0)
    assert not engine.ready and "closing" in engine.why_not_ready
    with pytest.raises(NotReady, match="closing"):
        await first_of(engine, asked())
    output = await task
    await close
    return output.finish_reason


def test_it_closes_after_a_drain(folder: Path, run: Run) -> None:
    assert run(closed(run(started("local", folder)), 60.0, 200)) == "length"


def test_it_closes_at_once(engine: Engine, run: Run) -> None:
    assert run(closed(engine, 0.0, LONG)) == "cancelled"
