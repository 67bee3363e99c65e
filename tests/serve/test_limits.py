"""Rates and places: of one key, of all together, and that they come back whatever happens."""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest
from fake_engine import TINY, FakeEngine, output
from loops import within
from serve_engines import until
from serve_tools import Clock, call

from fastslow.output import Piece
from fastslow.request.options import GenerateOptions
from fastslow.serve.api.config import ServerConfig
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.keys import KeyLimits
from fastslow.serve.api.limits import Caller, Limits
from fastslow.serve.app import create_app


def who(name: str = "bot", **limits: Any) -> Caller:
    return Caller(name, "m", KeyLimits(**limits))


def refused(limits: Limits, caller: Caller) -> ApiError:
    with pytest.raises(ApiError) as error:
        limits.enter(caller)
    assert error.value.status == 429
    return error.value


def test_requests_a_minute() -> None:
    clock = Clock()
    limits, caller = Limits(clock=clock), who(requests_per_minute=3)
    for left in (2, 1, 0):
        headers = limits.enter(caller)
        limits.leave(caller)
        assert headers["x-ratelimit-limit-requests"] == "3"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
    error = refused(limits, caller)
    assert "3 requests a minute" in error.message and error.retry_after == 20.0
    assert (error.headers or {})["x-ratelimit-reset-requests"] == "60.000s"
    limits.enter(who("other", requests_per_minute=3))
    clock.now += error.retry_after
    limits.enter(caller)  # to wait as long as it says is enough
    refused(limits, caller)
    clock.now -= 3600  # a clock that goes back gives nothing
    refused(limits, caller)


def test_tokens_a_minute_are_counted_at_the_end() -> None:
    clock = Clock()
    limits, caller = Limits(clock=clock), who(tokens_per_minute=600)
    limits.enter(caller)
    limits.spend(caller, 700)  # more than there was: it fills up first
    limits.leave(caller)
    error = refused(limits, caller)
    assert (error.headers or {})["x-ratelimit-remaining-tokens"] == "0"
    assert error.retry_after == pytest.approx(10.1)
    clock.now += 10.2
    limits.enter(caller)


def test_the_tokens_of_all_answers_are_reserved_at_the_start() -> None:
    limits, caller = Limits(clock=Clock()), who(tokens_per_minute=300)
    ask = GenerateOptions(sampling={"max_tokens": 50, "n": 4})
    assert limits.reserve(caller, ask, TINY) == 200
    with pytest.raises(ApiError, match="up to 200 tokens are wanted, and .* 300 a minute") as error:
        limits.reserve(caller, ask, TINY)
    assert error.value.status == 429 and error.value.retry_after == pytest.approx(20.0)
    limits.spend(caller, 30, 200)
    assert limits.reserve(caller, ask, TINY) == 200, "what was not used is given back"
    limits.spend(caller, 0, 200)
    assert limits.enter(caller)["x-ratelimit-remaining-tokens"] == "270"
    assert limits.reserve(who("other"), ask, TINY) == 0


def test_one_client_does_not_take_all_places() -> None:
    limits = Limits(concurrent=8)
    greedy, modest, third = (Caller(address=f"10.0.0.{n}") for n in (1, 2, 3))
    for _ in range(6):
        limits.enter(greedy)
    assert refused(limits, greedy).code == "server_busy"
    limits.enter(modest)
    limits.enter(modest)
    assert refused(limits, modest).code == "server_busy"
    limits.leave(greedy)
    assert refused(limits, greedy).code == "server_busy"
    limits.enter(third)


@pytest.mark.parametrize(("one", "other", "same"), [
    ("10.0.0.1", "10.0.0.1", True), ("10.0.0.1", "10.0.0.2", False), ("2001:db8::1", "2001:db8::ffff:2", True),
    ("2001:db8::1", "2001:db8:0:1::1", False), ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
    ("testclient", "testclient", True),
])  # fmt: skip
def test_who_shares_a_place(one: str, other: str, same: bool) -> None:
    assert (Caller(address=one).share == Caller(address=other).share) is same
    assert Caller().share is None and who().share == Caller("x", "m", address=one).share == "m"


def test_requests_at_the_same_time() -> None:
    limits, caller = Limits(concurrent=3), who(concurrent=2)
    limits.enter(caller)
    limits.enter(caller)
    assert "2 requests running" in refused(limits, caller).message
    limits.enter(who("other"))
    assert refused(limits, who("another")).code == "server_busy"
    limits.leave(caller)
    assert limits.running == 2
    limits.enter(caller)
    refused(limits, caller)
    limits.leave(caller)
    limits.leave(who("other"))
    assert limits.running == 1


def test_changed_limits_count_at_once_and_a_refusal_takes_nothing() -> None:
    limits = Limits(clock=Clock())
    limits.enter(who(requests_per_minute=1))
    refused(limits, who(requests_per_minute=1))
    limits.enter(who(requests_per_minute=2))
    limits.enter(who())
    limits.enter(who())
    limits, caller = Limits(clock=Clock()), who(requests_per_minute=2, concurrent=1)
    limits.enter(caller)
    for _ in range(5):
        refused(limits, caller)
    limits.leave(caller)
    assert limits.enter(caller)["x-ratelimit-remaining-requests"] == "0"


async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
    if request.prompt == "broken":
        raise RuntimeError("it broke")
    while request.prompt == "endless":
        yield Piece("x", token_ids=[1])
        await asyncio.sleep(0)
    yield Piece(output=output())


@within()
async def test_the_place_comes_back_whatever_happens() -> None:
    app = create_app(engine := FakeEngine(script), ServerConfig(max_requests=1))

    def sent(prompt: str, leave_after: int = 10**9) -> Coroutine[Any, Any, list[Any]]:
        body = json.dumps({"prompt": prompt, "stream": prompt == "endless"}).encode()
        return call(app, "POST", "/v1/completions", body, leave_after=leave_after)

    async def status(prompt: str) -> int:
        return int((await sent(prompt))[0]["status"])

    assert [await status(prompt) for prompt in ("whole", "broken", "whole")] == [200, 500, 200]
    await sent("endless", leave_after=20)
    assert await status("whole") == 200, "its client went away"
    before, task = len(engine.asked), asyncio.create_task(sent("endless"))
    await until(lambda: len(engine.asked) > before)
    assert await status("whole") == 429
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await status("whole") == 200
