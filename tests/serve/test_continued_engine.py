"""`ContinuedEngine` in front of engines that end at every place: a client sees one whole answer, or one error."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest
from breaking_engines import Break, ScriptedReplicas, Token
from hypothesis import given
from hypothesis import strategies as st
from requests_made import made_request

from fastslow.output import Decided, GenerationError, Output, Piece
from fastslow.serve.api.engine import Busy, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.continued_engine import ContinuedEngine, Retries
from fastslow.serve.engines.sent_pieces import OtherAnswer, SentPieces

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


def gone(replica: str = "a") -> NotReady:
    return NotReady("it is gone", replica)


async def taken(engine: ContinuedEngine, ask: GenerateRequest = ASK) -> tuple[list[Piece], Output]:
    *pieces, last = [piece async for piece in engine.stream(ask)]
    assert last.output is not None
    return pieces, last.output


def check(answer: Sequence[Sequence[Token]], pieces: Sequence[Piece], output: Output) -> None:
    """Everything came once and in order."""
    for index, tokens in enumerate(answer):
        own = [piece for piece in pieces if piece.index == index]
        ids, sources = [t.id for t in tokens], [t.source for t in tokens]
        assert "".join(piece.text for piece in own) == "".join(t.text for t in tokens)
        assert "".join(piece.reasoning for piece in own) == "".join(t.reasoning for t in tokens)
        assert [token for piece in own for token in piece.token_ids] == ids
        assert [s for piece in own for s in piece.sources] == sources
        assert [p for piece in own for p in piece.logprobs or ()] == [
            {token: -0.5} for token in ids
        ]
        assert output.choices[index].token_ids == ids
        assert output.choices[index].sources == sources
    assert all(piece.text or piece.reasoning or piece.token_ids for piece in pieces)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("after", range(7))
def test_it_breaks_after_every_piece(n: int, after: int) -> None:
    answer = [ANSWER[: 6 - i] for i in range(n)]
    inner = ScriptedReplicas(answer, [Break(after=after)])
    engine = ContinuedEngine(inner, QUICK)
    pieces, output = asyncio.run(taken(engine))
    check(answer, pieces, output)
    assert len(inner.asked) == 2 and inner.asked[1].avoid == ("a",)
    assert (inner.asked[1].options.answered is None) == (after == 0)
    assert (engine.retried, engine.continued) == ((1, 0) if after == 0 else (0, 1))
    assert inner.left == 2 and engine.given_up == 0


tokens = st.builds(
    Token,
    st.integers(5, 9),
    st.text("ab é", max_size=3),
    st.text("xy ü", max_size=3),
    st.sampled_from(["target", "ngram"]),
)
breaks = st.builds(
    Break, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 9), st.just(gone())
)


@given(st.lists(st.lists(tokens, min_size=1, max_size=9), min_size=1, max_size=3), st.lists(breaks))
def test_it_breaks_anywhere_and_often(answer: list[list[Token]], breaks: list[Break]) -> None:
    engine = ContinuedEngine(ScriptedReplicas(answer, breaks), QUICK)
    pieces, output = asyncio.run(taken(engine))
    check(answer, pieces, output)


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
        piece = Piece(said[start : start + size], token_ids=here, sources=["y"] * len(here))
        fresh = sent.take(piece, 0.0)
        rest += fresh.text if fresh is not None else ""
    assert rest == said[text:]
    assert sent.choices[0].tokens == ids
    assert sent.choices[0].sources == ["x"] * tokens + ["y"] * (6 - tokens)


def test_a_stream_with_other_tokens_is_not_passed_on() -> None:
    sent = SentPieces()
    sent.take(Piece("ab", token_ids=[5, 6]), 0.0)
    sent.begin_again()
    with pytest.raises(OtherAnswer):
        sent.take(Piece("ax", token_ids=[5, 7]), 0.0)


class OtherWords(ScriptedReplicas):
    """Says something else in the second try."""

    async def stream(self, ask: GenerateRequest) -> Any:
        if self.asked:
            self.answer, ask = [[Token(99, text="no")]], ask.with_options(answered=None)
        async for piece in super().stream(ask):
            yield piece


def test_an_engine_that_began_otherwise_ends_it() -> None:
    engine = ContinuedEngine(OtherWords([ANSWER], [Break(after=2)]), QUICK)
    with pytest.raises(NotReady, match="another engine made other tokens"):
        asyncio.run(taken(engine))
    assert engine.given_up == 1


def test_the_output_tells_what_the_client_saw() -> None:
    inner = ScriptedReplicas([ANSWER], [Break(after=2), Break(after=0), Break(after=1)])
    engine = ContinuedEngine(inner, replace(QUICK, first=0.03, longest=0.03))
    whole = asyncio.run(taken(ContinuedEngine(ScriptedReplicas([ANSWER]))))[1]
    began = monotonic()
    _, output = asyncio.run(taken(engine))
    took = monotonic() - began
    assert whole.metrics.decision == "" and whole.metrics.ttft == 0.2, "as the engine says"
    assert output.metrics.decision == "continued on another engine (3 times)"
    paused = 3 * 0.029
    assert output.metrics.ttft <= took - paused and output.metrics.tpot * 5 >= paused
    assert output.prompt_token_ids == whole.prompt_token_ids
    again = ContinuedEngine(ScriptedReplicas([ANSWER], [Break(after=0)]), QUICK)
    assert "asked again of another engine (once)" in asyncio.run(taken(again))[1].metrics.decision


def test_what_was_decided_is_told_again() -> None:
    decided = Decided("fast", "it is short", 2)

    class Choosing(ScriptedReplicas):
        async def stream(self, ask: GenerateRequest) -> Any:
            first = True
            async for piece in super().stream(ask):
                yield replace(piece, decided=decided) if first and piece.token_ids else piece
                first = False

    inner = Choosing([ANSWER], [Break(after=2), Break(after=2)])
    asyncio.run(taken(ContinuedEngine(inner, QUICK)))
    assert [a.options.answered and a.options.answered.decided for a in inner.asked] == [
        None,
        [("fast", "it is short", 2)],
        [("fast", "it is short", 2)],
    ]


def test_what_is_not_streamed_is_asked_again_whole(logged: list[str]) -> None:
    async def main() -> None:
        inner = ScriptedReplicas([ANSWER], [Break(after=0), Break(after=0, error=gone("b"))])
        engine = ContinuedEngine(inner, QUICK)
        ask = replace(ASK.with_options(timeout=60.0), streamed=False)
        await taken(engine, ask)
        assert [one.options.answered for one in inner.asked] == [None] * 3
        assert inner.asked[2].avoid == ("a", "b")
        assert inner.asked[0].options.timeout == 60.0
        assert 60.0 > (inner.asked[1].options.timeout or 99) > 50

    asyncio.run(main())
    lines = [line.strip() for line in logged]
    assert lines == [
        "request one: engine a ended; another engine is asked",
        "request one: engine b ended; another engine is asked",
    ]


@pytest.mark.parametrize("after", [0, 2])
def test_the_last_straw_of_several_is_given_up(after: int, logged: list[str]) -> None:
    inner = ScriptedReplicas([ANSWER], [Break(after=after)] * 9)
    engine = ContinuedEngine(inner, replace(QUICK, deaths=3))
    with pytest.raises(NotReady, match="it was under way on 3 engines when they ended"):
        asyncio.run(taken(engine))
    assert len(inner.asked) == 3 and engine.given_up == 1
    assert "is given up" in logged[-1] and "a prompt" not in "".join(logged)


def test_where_no_other_is_there_it_ends_in_time() -> None:
    nobody = Break(after=0, error=NotReady("nobody is there"))
    inner = ScriptedReplicas([ANSWER], [Break(after=2), *[nobody] * 500])
    engine = ContinuedEngine(inner, Retries(seconds=0.1, first=0.01, longest=0.02))
    with pytest.raises(NotReady, match=r"no other engine took it within 0.1 s"):
        asyncio.run(taken(engine))
    assert 2 <= len(inner.asked) < 40
    assert engine.continued == 1, "one engine ended, however often others were looked for"


def test_one_that_comes_back_in_time_goes_on() -> None:
    nobody = Break(after=0, error=NotReady("nobody is there"))
    full = Break(after=0, error=Busy("the queue is full", 0.01))
    inner = ScriptedReplicas([ANSWER], [Break(after=2), nobody, full, nobody])
    engine = ContinuedEngine(inner, Retries(first=0.001))
    pieces, output = asyncio.run(taken(engine))
    check([ANSWER], pieces, output)
    assert len(inner.asked) == 5 and engine.continued == 1


def test_full_queues_end_it_in_time() -> None:
    full = Break(after=0, error=Busy("the queue is full", 0.01))
    quick = Retries(seconds=0.05, first=0.01, longest=0.02)
    streamed = ScriptedReplicas([ANSWER], [Break(after=2), *[full] * 99])
    with pytest.raises(NotReady, match="no other engine took it within 0.05 s"):
        asyncio.run(taken(ContinuedEngine(streamed, quick)))
    silent = ScriptedReplicas([ANSWER], [Break(after=0), *[full] * 99])
    with pytest.raises(Busy, match="the queue is full"):
        asyncio.run(taken(ContinuedEngine(silent, quick)))


@pytest.mark.parametrize(
    "error",
    [Busy("full"), ValueError("max_tokens=0 is too small"), GenerationError("it broke", [])],
)
def test_a_first_refusal_is_the_clients(error: Exception) -> None:
    inner = ScriptedReplicas([ANSWER], [Break(after=0, error=error)])
    with pytest.raises(type(error)) as raised:
        asyncio.run(taken(ContinuedEngine(inner, QUICK)))
    assert raised.value is error and len(inner.asked) == 1


def test_what_cannot_be_continued_ends_in_an_error_of_the_server() -> None:
    refusal = Break(after=0, error=ValueError("answered: mode 'unsure' escalates"))
    inner = ScriptedReplicas([ANSWER], [Break(after=1), refusal])
    with pytest.raises(NotReady, match="cannot be continued: answered: mode 'unsure' escalates"):
        asyncio.run(taken(ContinuedEngine(inner, QUICK)))


def test_a_failure_inside_the_engine_is_no_reason_to_go_on() -> None:
    failure = Break(after=2, error=GenerationError("it broke", []))
    inner = ScriptedReplicas([ANSWER], [failure])
    with pytest.raises(GenerationError):
        asyncio.run(taken(ContinuedEngine(inner, QUICK)))
    assert len(inner.asked) == 1


class Loading(ScriptedReplicas):
    ready = False


def test_an_engine_that_is_not_there_yet_says_so_at_once() -> None:
    nobody = Break(after=0, error=NotReady("the model is loading"))
    inner = Loading([ANSWER], [nobody])
    with pytest.raises(NotReady, match="the model is loading"):
        asyncio.run(taken(ContinuedEngine(inner, QUICK)))
    assert len(inner.asked) == 1


def test_a_pause_ends_where_the_request_is_cancelled_or_left() -> None:
    async def main(leave: bool) -> None:
        inner = ScriptedReplicas([ANSWER], [Break(after=1)])
        engine = ContinuedEngine(inner, Retries(first=60.0, longest=60.0))
        task = asyncio.ensure_future(taken(engine))
        while inner.left < 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        if leave:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert await engine.cancel("one")
            with pytest.raises(NotReady, match="cancelled after its engine had ended"):
                await task
        assert len(inner.asked) == 1 and not engine._running

    for leave in (False, True):
        asyncio.run(asyncio.wait_for(main(leave), 10))


class OnItsWay(ScriptedReplicas):
    """Does not know a request before its first piece is there, which takes a moment."""

    known = False

    async def stream(self, ask: GenerateRequest) -> Any:
        await asyncio.sleep(0.05)
        self.known = True
        while not self.cancelled:
            await asyncio.sleep(0.001)
        async for piece in super().stream(ask):
            yield piece

    async def cancel(self, id: str) -> bool:
        return self.known and await super().cancel(id)


def test_a_request_that_no_replica_knows_yet_is_cancelled_once_one_does() -> None:
    async def main() -> None:
        inner = OnItsWay([ANSWER])
        engine = ContinuedEngine(inner, QUICK)
        task = asyncio.ensure_future(taken(engine))
        await asyncio.sleep(0.01)
        assert await engine.cancel("one")
        assert inner.cancelled == ["one"]
        await task

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_cancelled_answer_whose_engine_ends_is_not_asked_again() -> None:
    async def main() -> None:
        inner = ScriptedReplicas([ANSWER], [Break(after=2)])
        engine = ContinuedEngine(inner, QUICK)
        with pytest.raises(NotReady, match="the request was cancelled"):
            async for _ in engine.stream(ASK):
                await engine.cancel("one")
        assert len(inner.asked) == 1

    asyncio.run(main())


def test_a_server_that_closes_asks_nobody() -> None:
    async def main() -> None:
        inner = ScriptedReplicas([ANSWER], [Break(after=2)])
        engine = ContinuedEngine(inner, QUICK)
        with pytest.raises(NotReady, match="the server is closing"):
            async for _ in engine.stream(ASK):
                await engine.close()
        assert len(inner.asked) == 1

    asyncio.run(main())


@pytest.mark.parametrize(("sources", "place"), [((), 3), (("target", "forced", "forced"), 4)])
def test_a_thought_that_was_stopped_stays_stopped(sources: Sequence[str], place: int) -> None:
    """Where its closing was forced; behind all that came, where that is not known."""
    answer = [Token(5 + n) for n in range(3)]
    answer += [Token(20, source=source) for source in sources]

    async def main() -> None:
        inner = ScriptedReplicas([[*answer, Token(30)]], [Break(after=len(answer))])
        engine = ContinuedEngine(inner, QUICK)
        count = 0
        async for piece in engine.stream(ASK):
            count += len(piece.token_ids)
            if count == 3:
                assert await engine.stop_thinking("one")
        again = inner.asked[1].options.answered
        assert again is not None and again.stopped == [place]

    asyncio.run(main())


def test_the_rest_is_the_engines_own() -> None:
    async def main() -> None:
        inner = ScriptedReplicas([ANSWER])
        engine = ContinuedEngine(inner)
        inner.restarts = 4
        assert engine.restarts == 4 and engine.card is inner.card and engine.ready
        assert engine.why_not_ready == ""
        assert await engine.trace("x") == {"steps": []} and await engine.stats() == inner.figures
        assert await engine.tokenize(ASK) == [1, 2, 3] and await engine.detokenize([1]) == "text"
        assert await engine.token_bytes([1]) == [(b"x", True)]
        assert await engine.stop_thinking("x") and await engine.cancel("x")

    asyncio.run(main())


class Slow(ScriptedReplicas):
    """Each try takes a while before anything comes, as where an answer is not streamed."""

    async def stream(self, ask: GenerateRequest) -> AsyncGenerator[Piece, None]:
        await asyncio.sleep(0.1)
        async for piece in super().stream(ask):
            yield piece


def test_what_an_engine_worked_before_it_ended_is_no_search_for_one() -> None:
    inner = Slow([ANSWER], [Break(after=0), Break(after=0)])
    pieces, output = asyncio.run(taken(ContinuedEngine(inner, replace(QUICK, seconds=0.05))))
    check([ANSWER], pieces, output)
    nobody = Break(after=0, error=NotReady("none took it"))
    inner = Slow([ANSWER], [Break(after=0), nobody, nobody])
    with pytest.raises(NotReady, match=r"no other engine took it within 0\.05 s"):
        asyncio.run(taken(ContinuedEngine(inner, replace(QUICK, seconds=0.05))))


class Vanishing(ScriptedReplicas):
    """No replica runs from the first try on, until the last."""

    there = True

    @property
    def ready(self) -> bool:
        return self.there

    async def stream(self, ask: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.there = not self.breaks
        async for piece in super().stream(ask):
            yield piece


def test_what_was_asked_while_replicas_were_known_to_run_waits_for_new_ones() -> None:
    nobody = [Break(after=0, error=NotReady("none took it")) for _ in range(3)]
    inner = Vanishing([ANSWER], list(nobody))
    pieces, output = asyncio.run(taken(ContinuedEngine(inner, QUICK)))
    check([ANSWER], pieces, output)
    inner = Vanishing([ANSWER], nobody)
    inner.there = False
    with pytest.raises(NotReady, match="none took it"):
        asyncio.run(taken(ContinuedEngine(inner, QUICK)))


class Forgetful(ScriptedReplicas):
    """Each replica ends under the first calls about tokens."""

    def __init__(self, deaths: int, ready: bool = True) -> None:
        super().__init__([ANSWER])
        self.deaths, self.there = deaths, ready

    @property
    def ready(self) -> bool:
        return self.there

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        if self.deaths:
            self.deaths -= 1
            raise NotReady("the replica ended")
        return await super().token_bytes(tokens)


def test_calls_about_tokens_are_made_again() -> None:
    """An answer under way may need them for its log-probabilities."""

    async def main() -> None:
        engine = ContinuedEngine(Forgetful(5), QUICK)
        assert await engine.token_bytes([1]) == [(b"x", True)]
        with pytest.raises(NotReady, match="the replica ended"):
            await ContinuedEngine(Forgetful(9), replace(QUICK, seconds=0.0)).token_bytes([1])
        inner = Forgetful(1, ready=False)
        with pytest.raises(NotReady, match="the replica ended"):
            await ContinuedEngine(inner, QUICK).token_bytes([1])
        inner.deaths, engine = 1, ContinuedEngine(inner, QUICK)
        async for _ in engine.stream(ASK):
            assert await engine.token_bytes([1]), "it waits for one, as the answer does"

    asyncio.run(main())


def test_engines_that_close_are_no_deaths() -> None:
    """Several may refuse an answer that is not to blame."""
    refusals = [
        Break(after=0, error=NotReady("it closes", name, refused=True)) for name in "abcdef"
    ]
    inner = ScriptedReplicas([ANSWER], refusals)
    pieces, output = asyncio.run(taken(ContinuedEngine(inner, replace(QUICK, deaths=1))))
    check([ANSWER], pieces, output)
    assert inner.asked[-1].avoid == tuple("abcdef")


def test_an_error_keeps_its_replica_on_its_way() -> None:
    error = pickle.loads(pickle.dumps(NotReady("it is gone", "a", True)))
    assert (str(error), error.replica, error.refused) == ("it is gone", "a", True)
