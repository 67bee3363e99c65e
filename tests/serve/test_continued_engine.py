"""`ContinuedEngine` in front of engines that end at every place: a client sees one whole answer, or one error."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import pytest
from breaking_engines import Break, ScriptedReplicas, Token, piece_of, taken
from hypothesis import given
from hypothesis import strategies as st
from loops import within
from requests_made import made_request
from serve_engines import until

from fastslow.output import Decided, GenerationError, Output, Piece
from fastslow.serve.api.engine import Busy, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines import continued_engine
from fastslow.serve.engines.continued_engine import ContinuedEngine, Retries, _ContinuedRequest
from fastslow.serve.engines.sent_pieces import SentChoice, SentPieces

QUICK = Retries(deaths=99, seconds=5.0, first=0.0, longest=0.0)
ANSWER = [
    Token(5, reasoning="I "),
    Token(6, reasoning="th"),
    Token(7),  # half a character
    Token(8, reasoning="ink é", text="So"),
    Token(9, text=" it", source="ngram"),
    Token(10, text=" is."),
]
ASK = made_request("one", "a prompt")


def gone(replica: str = "a", after: int = 0) -> Break:
    return Break(after=after, error=NotReady("it is gone", replica))


def refused(error: Exception) -> Break:
    return Break(after=0, error=error)


NOBODY = refused(NotReady("nobody is there"))
FULL = refused(Busy("the queue is full", 0.01))
UNSURE = refused(ValueError("answered: mode 'unsure' escalates"))


def check(answer: Sequence[Sequence[Token]], pieces: Sequence[Piece], output: Output) -> None:
    """Everything came once and in order."""
    for index, tokens in enumerate(answer):
        own, whole = [p for p in pieces if p.index == index], piece_of(tokens, index)
        assert "".join(piece.text for piece in own) == whole.text
        assert "".join(piece.reasoning for piece in own) == whole.reasoning
        for name in ("token_ids", "sources", "logprobs"):
            assert [one for p in own for one in getattr(p, name) or ()] == getattr(whole, name)
        assert output.choices[index].token_ids == whole.token_ids
        assert output.choices[index].sources == whole.sources
    assert all(piece.text or piece.reasoning or piece.token_ids for piece in pieces)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("after", range(7))
def test_it_breaks_after_every_piece(n: int, after: int) -> None:
    answer = [ANSWER[: 6 - i] for i in range(n)]
    inner = ScriptedReplicas(answer, [Break(after=after)])
    engine = ContinuedEngine(inner, QUICK)
    check(answer, *asyncio.run(taken(engine, ASK)))
    assert len(inner.asked) == 2 and inner.asked[1].avoid == ("a",)
    assert (inner.asked[1].options.answered is None) == (after == 0)
    assert (engine.retried, engine.continued) == ((1, 0) if after == 0 else (0, 1))
    assert inner.left == 2 and engine.given_up == 0


texts = [st.text(letters, max_size=3) for letters in ("ab é", "xy ü")]
tokens = st.builds(Token, st.integers(5, 9), *texts, st.sampled_from(["target", "ngram"]))
breaks = st.builds(Break, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 9))


@given(st.lists(st.lists(tokens, min_size=1, max_size=9), min_size=1, max_size=3), st.lists(breaks))
def test_it_breaks_anywhere_and_often(answer: list[list[Token]], breaks: list[Break]) -> None:
    check(answer, *asyncio.run(taken(ContinuedEngine(ScriptedReplicas(answer, breaks), QUICK), ASK)))


@given(st.integers(0, 6), st.integers(0, 12), st.integers(1, 12))
def test_a_piece_is_cut_in_the_middle_of_its_texts(tokens: int, text: int, size: int) -> None:
    """Whatever the length of what was sent: the rest comes, and nothing twice."""
    said, ids = "abcdefghijkl", list(range(6))
    sent = SentPieces()
    if tokens or text:
        sent.take(Piece(said[:text], token_ids=ids[:tokens], sources=["x"] * tokens), 0.0)
    sent.begin_again()
    rest = ""
    for start in range(0, 12, size):
        here = ids if not start else []
        fresh = sent.take(Piece(said[start : start + size], token_ids=here, sources=["y"] * len(here)), 0.0)
        rest += fresh.text if fresh is not None else ""
    assert rest == said[text:] and sent.choices[0].tokens == ids
    assert sent.choices[0].sources == ["x"] * tokens + ["y"] * (6 - tokens)


class OtherWords(ScriptedReplicas):
    """Says something else in the second try."""

    async def stream(self, ask: GenerateRequest) -> Any:
        if self.asked:
            self.answer, ask = [[Token(99, text="no")]], ask.with_options(answered=None)
        async for piece in super().stream(ask):
            yield piece


class Vanishing(ScriptedReplicas):
    """No replica runs from the first try on, until the last."""

    async def stream(self, ask: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.there = not self.breaks
        async for piece in super().stream(ask):
            yield piece


class Ending(NamedTuple):
    """The end of an answer without its client's doing. asked, continued: times; -1: any number."""

    breaks: list[Break]
    error: type[Exception] | None = None
    said: str = ""
    asked: int = -1
    continued: int = -1
    retries: Retries = QUICK
    engine: Callable[..., ScriptedReplicas] = ScriptedReplicas


BRIEF = Retries(seconds=0.1, first=0.01, longest=0.02)
BUSY, BROKEN = Busy("full"), GenerationError("it broke", [])
THREE = "it was under way on 3 engines when they ended"
NEVER = [NOBODY] * 99
LATE = r"no other engine took it within 0\.1 s"
ESCALATES = "cannot be continued: answered: mode 'unsure' escalates"
SUSPECT = replace(QUICK, deaths=3)
LOADING = partial(ScriptedReplicas, there=False)
SLOW = partial(ScriptedReplicas, seconds=0.1)  # as where an answer is not streamed
ENDS = {
    "the last of several deaths": Ending([gone(after=2)] * 9, NotReady, THREE, 3, 2, SUSPECT),
    "the same before any piece": Ending([gone()] * 9, NotReady, THREE, 3, 0, SUSPECT),
    # one engine ended, however often others were looked for
    "nobody is there in time": Ending([gone(after=2), *NEVER], NotReady, LATE, -1, 1, BRIEF),
    "somebody is there in time": Ending([gone(after=2), NOBODY, FULL, NOBODY], None, "", 5, 1),
    "queues stay full": Ending([gone(after=2), *[FULL] * 99], NotReady, LATE, retries=BRIEF),
    "the same before any piece: HTTP 429": Ending([gone(), *[FULL] * 99], Busy, retries=BRIEF),
    "a first refusal: full": Ending([refused(BUSY)], Busy, "^full$", 1),
    "a first refusal: wrong": Ending([refused(ValueError("max_tokens=0"))], ValueError, "^max", 1),
    "a first refusal: failed": Ending([refused(BROKEN)], GenerationError, "it broke", 1),
    "a failure inside the engine": Ending([Break(after=2, error=BROKEN)], GenerationError, "", 1),
    "what is made again from its beginning": Ending([gone(after=3), UNSURE], None, "", 3, 1),
    "what cannot be made again": Ending([gone(after=1), UNSURE, UNSURE], NotReady, ESCALATES, 3),
    "what is made again in other words": Ending([gone(after=1), UNSURE], NotReady, ESCALATES, 3, engine=OtherWords),
    "other tokens": Ending([gone(after=2)], NotReady, "another engine made other tokens", 2, engine=OtherWords),
    "not there yet": Ending([NOBODY], NotReady, "nobody is there", 1, engine=LOADING),
    "asked while replicas were known to run": Ending([NOBODY] * 3, asked=4, engine=Vanishing),
    # several may refuse an answer that is not to blame
    "engines that close are no deaths": Ending(
        [refused(NotReady("it closes", name, refused=True)) for name in "abcdef"],
        asked=7,
        retries=replace(QUICK, deaths=1),
    ),
    # what an engine worked before it ended is no search for one
    "slow tries": Ending([gone(), gone()], retries=replace(BRIEF, seconds=0.05), engine=SLOW),
    "slow tries that nobody takes": Ending([gone(), NOBODY, NOBODY], NotReady, LATE, retries=BRIEF, engine=SLOW),
}


@pytest.mark.parametrize("name", ENDS)
def test_how_an_answer_ends(name: str, logged: list[str]) -> None:
    breaks, error, said, asked, continued, retries, kind = ENDS[name]
    inner = kind([ANSWER], list(breaks))
    engine = ContinuedEngine(inner, retries)
    if error is None:
        check([ANSWER], *asyncio.run(taken(engine, ASK)))
    else:
        with pytest.raises(error, match=said or None):
            asyncio.run(taken(engine, ASK))
    assert asked in (-1, len(inner.asked)) and len(inner.asked) < 40 and continued in (-1, engine.continued)
    tried = error is not None and len(inner.asked) > 1
    assert engine.given_up == tried == ("is given up" in "".join(logged[-1:]))
    assert "a prompt" not in "".join(logged)


def test_the_output_says_what_happened() -> None:
    whole = asyncio.run(taken(ContinuedEngine(ScriptedReplicas([ANSWER])), ASK))[1]
    assert whole.metrics.decision == "" and whole.metrics.ttft == 0.2, "as the engine says"
    for breaks, said in (
        ([gone(after=2), gone(), gone(after=1)], "continued on another engine (3 times)"),
        ([gone()], "asked again of another engine (once)"),
    ):
        engine = ContinuedEngine(ScriptedReplicas([ANSWER], breaks), QUICK)
        assert asyncio.run(taken(engine, ASK))[1].metrics.decision == said


@pytest.mark.parametrize(("first", "kept"), [(0.05, True), (9.5, False), (None, False)])
def test_the_figures_of_a_continued_answer(first: float | None, kept: bool) -> None:
    """It began ten seconds ago; the present try began one second ago, and alone it would be in time."""
    _, plain = asyncio.run(taken(ContinuedEngine(ScriptedReplicas([ANSWER])), ASK))
    (choice,) = plain.choices
    metrics = replace(choice.metrics, queue_seconds=0.2, target_ms=5000.0, target_kept=not kept)
    output = replace(plain, choices=[replace(choice, metrics=metrics)])
    now = monotonic()
    own = _ContinuedRequest(ASK, now - 10, continued=1, try_started=now - 1)
    if first is not None:
        own.sent.choices[0] = SentChoice(tokens=[5], first=now - 10 + first)
    made = continued_engine._whole(own, output).choices[0].metrics
    assert made.queue_seconds == pytest.approx(9.2) and made.ttft == pytest.approx(first or metrics.ttft + 9)
    assert made.target_kept is kept
    assert continued_engine._whole(_ContinuedRequest(ASK, now - 10), output) is output


@pytest.mark.parametrize(("longest", "pause"), [(2.0, 0.5), (0.3, 0.3)])
def test_a_full_engine_says_when_to_ask_again(longest: float, pause: float) -> None:
    engine = ContinuedEngine(ScriptedReplicas([ANSWER]), Retries(first=0.001, longest=longest))
    own = _ContinuedRequest(ASK, monotonic(), asked_again=1, since=monotonic())
    assert engine._pause(own, Busy("the queue is full", 0.5)) == pause


def test_what_was_decided_is_sent_again() -> None:
    decided = Decided("fast", "it is short", 2)

    class Choosing(ScriptedReplicas):
        async def stream(self, ask: GenerateRequest) -> Any:
            first = True
            async for piece in super().stream(ask):
                yield replace(piece, decided=decided) if first and piece.token_ids else piece
                first = False

    inner = Choosing([ANSWER], [Break(after=2), Break(after=2)])
    asyncio.run(taken(ContinuedEngine(inner, QUICK), ASK))
    found = [ask.options.answered and ask.options.answered.decided for ask in inner.asked]
    assert found == [None, [decided], [decided]]
    inner = Choosing([ANSWER], [Break(after=2), UNSURE])
    asyncio.run(taken(ContinuedEngine(inner, QUICK), ASK))
    answered = inner.asked[2].options.answered
    assert answered is not None and answered.decided == [decided]
    assert answered.tokens == [[]], "it is made again from its beginning"


def test_what_is_not_streamed_is_asked_again_whole(logged: list[str]) -> None:
    inner = ScriptedReplicas([ANSWER], [gone(), gone("b")])
    ask = replace(ASK.with_options(timeout=60.0), streamed=False)
    asyncio.run(taken(ContinuedEngine(inner, QUICK), ask))
    assert [one.options.answered for one in inner.asked] == [None] * 3 and inner.asked[2].avoid == ("a", "b")
    assert inner.asked[0].options.timeout == 60.0 and 60.0 > (inner.asked[1].options.timeout or 99) > 50
    assert [line.strip() for line in logged] == [
        "request one: engine a ended; another engine is asked",
        "request one: engine b ended; another engine is asked",
    ]


@pytest.mark.parametrize("leave", [False, True])
@within()
async def test_a_pause_ends_where_the_request_is_cancelled_or_left(leave: bool) -> None:
    inner = ScriptedReplicas([ANSWER], [Break(after=1)])
    engine = ContinuedEngine(inner, Retries(first=60.0, longest=60.0))
    task = asyncio.ensure_future(taken(engine, ASK))
    while inner.left < 1:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert task.cancel() if leave else await engine.cancel("one")
    error, said = (asyncio.CancelledError, None) if leave else (NotReady, "after its engine had end")
    with pytest.raises(error, match=said):
        await task
    assert len(inner.asked) == 1 and not engine._running


@pytest.mark.parametrize("closes", [False, True])
@within()
async def test_after_a_cancel_or_the_end_of_the_server_nobody_is_asked(closes: bool) -> None:
    inner = ScriptedReplicas([ANSWER], [Break(after=2)])
    engine = ContinuedEngine(inner, QUICK)
    said = "the server is closing" if closes else "the request was cancelled"
    with pytest.raises(NotReady, match=said):
        async for _ in engine.stream(ASK):
            await (engine.close() if closes else engine.cancel("one"))
    assert len(inner.asked) == 1


@within()
async def test_a_pause_between_two_tries_ends_with_the_server() -> None:
    inner = ScriptedReplicas([ANSWER], [gone(after=2)])
    engine = ContinuedEngine(inner, replace(QUICK, first=60.0, longest=60.0))
    task = asyncio.ensure_future(taken(engine, ASK))
    await until(lambda: bool(engine._running) and inner.left > 0)
    await asyncio.sleep(0.01)
    inner.breaks = [NOBODY]
    await engine.close()
    with pytest.raises(NotReady, match="the server is closing"):
        await task


@pytest.mark.parametrize("ran", [False, True])
@within()
async def test_a_new_request_waits_for_replicas_that_start_again(ran: bool) -> None:
    inner = ScriptedReplicas([ANSWER])
    engine = ContinuedEngine(inner, replace(QUICK, held=60.0))
    if ran:
        await taken(engine, ASK)
    inner.there, inner.breaks = False, [NOBODY] * 3
    if not ran:  # a model that loads for the first time may take minutes
        with pytest.raises(NotReady, match="nobody is there"):
            await taken(engine, ASK)
        return
    await taken(engine, ASK.with_options(timeout=5.0))
    assert len(inner.asked) == 5 and (inner.asked[-1].options.timeout or 9) < 5
    assert engine.retried == engine.given_up == 0
    engine._retries, inner.breaks = replace(QUICK, held=0.05), [NOBODY] * 9999
    with pytest.raises(NotReady, match="nobody is there"):
        await taken(engine, ASK)


class OnItsWay(ScriptedReplicas):
    """Its replica does not know a request at the first calls about it."""

    calls = 0

    async def cancel(self, id: str) -> bool:
        self.calls += 1
        return self.calls > 2 and await super().cancel(id)


@within()
async def test_a_request_that_no_replica_knows_yet_is_cancelled_once_one_does() -> None:
    engine = ContinuedEngine(inner := OnItsWay([ANSWER], seconds=1.0), QUICK)
    task = asyncio.ensure_future(taken(engine, ASK))
    await asyncio.sleep(0.01)
    assert await engine.cancel("one")
    assert inner.cancelled == ["one"] and not task.done()
    await task


class Stopped(ScriptedReplicas):
    """Counts how often a thought is stopped; its tries take a moment."""

    stops = 0

    async def stop_thinking(self, id: str) -> bool:
        self.stops += 1
        return True


@pytest.mark.parametrize("place", [None, 4])
@within(10)
async def test_a_thought_that_was_stopped_stays_stopped(place: int | None) -> None:
    """The next engine hears where the thought was stopped; where none has said so, it is asked to stop it."""
    answer = [Token(5), Token(6), Token(7), Token(20), Token(21, source="forced", stopped=place)]
    inner = Stopped([[*answer, Token(30, stopped=place)]], [Break(after=5)])
    engine = ContinuedEngine(inner, replace(QUICK, first=0.05, longest=0.05))
    count = 0
    async for piece in engine.stream(ASK):
        count += len(piece.token_ids)
        if count == 3:
            assert await engine.stop_thinking("one")
            inner.seconds = 0.2
    again = inner.asked[1].options.answered
    assert again is not None and again.stopped == [place] and inner.stops == 1 + (place is None)


class Thinker(ScriptedReplicas):
    """Each try waits until its thought is stopped; at first it has none."""

    stops = waits = 0

    async def stop_thinking(self, id: str) -> bool:
        self.stops += 1
        return self.stops % 2 == 0

    async def stream(self, ask: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.waits += 1
        while self.stops < 2 * self.waits:
            await asyncio.sleep(0.001)
        async for piece in super().stream(ask):
            yield piece


@pytest.mark.parametrize("streamed", [True, False])
@within()
async def test_a_thought_that_was_stopped_before_it_came_is_stopped_on_each_engine(streamed: bool) -> None:
    inner = Thinker([ANSWER, ANSWER[:3]], [gone(), Break(after=1), gone("b")])
    engine = ContinuedEngine(inner, QUICK)
    ask = replace(made_request("one", "a prompt", {"n": 2}), streamed=streamed)
    task = asyncio.ensure_future(taken(engine, ask))
    while not inner.waits:
        await asyncio.sleep(0)
    assert [await engine.stop_thinking("one") for _ in range(2)] == [False, True]
    _, output = await task
    assert len(output.choices) == 2 and inner.waits == 4 and inner.stops == 8
    third = inner.asked[2].options.answered
    assert (third is not None) is streamed, "of which one had begun"
    assert third is None or third.stopped == [None], "no engine has said where"


class Forgetful(ScriptedReplicas):
    """Each replica ends under the first calls about tokens."""

    deaths = 1

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        if self.deaths:
            self.deaths -= 1
            raise NotReady("the replica ended")
        return await super().token_bytes(tokens)


@within()
async def test_calls_about_tokens_are_made_again() -> None:
    """An answer under way may need them for its log-probabilities."""
    inner = Forgetful([ANSWER])
    inner.deaths = 5
    assert await ContinuedEngine(inner, QUICK).token_bytes([1]) == [(b"x", True)]
    inner = Forgetful([ANSWER], there=False)
    late = ContinuedEngine(Forgetful([ANSWER]), replace(QUICK, seconds=0.0))
    for engine in (late, ContinuedEngine(inner, QUICK)):
        with pytest.raises(NotReady, match="the replica ended"):
            await engine.token_bytes([1])
    inner.deaths, engine = 1, ContinuedEngine(inner, QUICK)
    async for _ in engine.stream(ASK):
        assert await engine.token_bytes([1]), "it waits for one, as the answer does"
