"""Two real engines of one `ContinuedEngine`: an answer that breaks is the answer of one engine."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from breaking_engines import Replicas, taken
from checkpoints import write_moge
from loops import within
from requests_made import made_request
from serve_tools import TEMPLATE, VOCAB, client_of, events_of, open_tiny
from tokenizers_tiny import write_bpe

from fastslow import LLM, Completion, Output, Piece, ResumeState
from fastslow.serve.api.engine import NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.app import create_app
from fastslow.serve.engines.continued_engine import ContinuedEngine, Retries
from fastslow.serve.engines.local import LocalEngine

QUICK = Retries(deaths=99, seconds=5.0, first=0.0, longest=0.0)
CHAT = [{"role": "user", "content": "The quick brown fox"}]
SEEDED = {"seed": 3, "temperature": 0.9}


def write_model(folder: Path) -> Path:
    write_bpe(folder, TEMPLATE, VOCAB)
    return write_moge(folder, vocab=VOCAB, num_hidden_layers=2, hidden_size=32, max_position_embeddings=4096)


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LLM]]:
    folder = write_model(tmp_path_factory.mktemp("tiny"))
    with open_tiny(folder) as a, open_tiny(folder) as b:
        yield {"a": a, "b": b}


def replicas(llms: dict[str, LLM], *after: int) -> Replicas:
    return Replicas({name: LocalEngine(llm, "tiny") for name, llm in llms.items()}, after)


async def answer_of(alike: Replicas, ask: GenerateRequest) -> tuple[list[Piece], Output]:
    return await taken(ContinuedEngine(alike, QUICK), ask)


def said(one: Completion) -> tuple[Any, ...]:
    ours = one.metrics
    usage = ours.tokens, ours.prompt_tokens, ours.thinking_tokens, ours.thinking_ended, ours.mode
    return one.text, one.reasoning, one.token_ids, one.finish_reason, one.stop_reason, usage


def joined(pieces: list[Piece], index: int) -> tuple[Any, ...]:
    own = [piece for piece in pieces if piece.index == index]
    return (
        "".join(piece.text for piece in own),
        "".join(piece.reasoning for piece in own),
        [token for piece in own for token in piece.token_ids],
        [place for piece in own for place in piece.logprobs or ()],
    )


def sampled(tokens: int, mode: Any, **sampling: Any) -> GenerateRequest:
    return made_request("a", CHAT, {"max_tokens": tokens, **sampling}, mode=mode)


def escalating(base: str, how: str, **sampling: Any) -> GenerateRequest:
    mode = {"base": base, "escalate": {"below": 1.0, "window": 3, "how": how}}
    return sampled(10, mode, ignore_eos=True, **sampling)


NINE: dict[str, Any] = {"max_tokens": 9, "ignore_eos": True}
ASKS: dict[str, GenerateRequest] = {
    "greedy": sampled(9, "fast", ignore_eos=True),
    "seeded": sampled(9, "deep", n=2, logprobs=1, **SEEDED),
    "auto": sampled(9, "auto", **SEEDED),
    "budget": sampled(12, {"base": "deep", "thinking_budget": 4}, **SEEDED),
    "stop": sampled(14, "fast", n=2, stop=["ax"], **SEEDED),
    "grammar": sampled(40, "fast", grammar={"regex": "[a-c]{4}é[0-9]{5}"}, **SEEDED),
    "tokens": made_request("a", [5, 6, 7, 8], NINE, speculation="off"),
    "escalates, recompute": escalating("auto", "recompute"),
    "escalates, keep": escalating("fast", "keep", logprobs=1, **SEEDED),
    "escalates, restart": escalating("fast", "restart", n=2, **SEEDED),
}


@pytest.mark.parametrize("name", ASKS)
@within()
async def test_it_breaks_after_every_piece(llms: dict[str, LLM], name: str) -> None:
    ask = ASKS[name].with_options(speculation="off")  # else later answers come in fewer pieces
    pieces, whole = await answer_of(replicas(llms), ask)
    broken = 0
    for after in range(len(pieces) + 1):
        alike = replicas(llms, after)
        ours, output = await answer_of(alike, ask)
        for index, choice in enumerate(whole.choices):
            assert said(output.choices[index]) == said(choice), after
            got, wanted = joined(ours, index), joined(pieces, index)
            assert got[:3] == wanted[:3], after
            assert [p.keys() for p in got[3]] == [p.keys() for p in wanted[3]]
        assert output.prompt_token_ids == whole.prompt_token_ids
        # on a busy machine an answer may come in fewer pieces than before, and so in one try
        assert ("another engine" in output.metrics.decision) == (len(alike.names) > 1), after
        broken += len(alike.names) > 1
    assert broken > 1


@within()
async def test_a_thought_is_closed_on_the_engine_that_answers(llms: dict[str, LLM]) -> None:
    """The second one; the third goes on from the place where that closed it."""
    sampling = {"max_tokens": 900, "ignore_eos": True, "logprobs": 0}
    mode = {"base": "deep", "closing": "\nNow.\n", "confidence": {"every": 300}}
    ask = made_request("a", CHAT, sampling, mode=mode, speculation="off")
    engine, stopped = ContinuedEngine(inner := replicas(llms, 3, 90), QUICK), False
    pieces = list[Piece]()
    async for piece in engine.stream(ask):
        pieces.append(piece)
        if len(inner.names) == 2 and not stopped:
            stopped = await engine.stop_thinking("a")
    output = pieces.pop().output
    assert stopped and output is not None and len(inner.names) == 3
    place = next(piece.stopped for piece in pieces if piece.stopped is not None)
    answered = ResumeState([output.token_ids[:place]], stopped=[place])
    alone = await answer_of(replicas(llms), ask.with_options(answered=answered))
    assert said(output.choices[0]) == said(alone[1].choices[0])
    assert output.metrics.thinking_ended == "caller" and output.metrics.thinking_tokens < 300
    ours = joined(pieces, 0)
    assert ours[2] == output.token_ids and len(ours[3]) == len(ours[2]), "each with its probability"


@within()
async def test_a_sampled_answer_that_may_escalate_ends_in_a_clean_error(llms: dict[str, LLM]) -> None:
    """Without a seed another engine makes other tokens, and what the first one was unsure of is not known."""
    sampling = {"max_tokens": 12, "ignore_eos": True, "temperature": 1.0}
    ask = made_request("a", CHAT, sampling, mode={"base": "fast", "escalate": {"below": 0.0}}, speculation="off")
    assert (await answer_of(replicas(llms), ask))[1].metrics.tokens == 12
    with pytest.raises(NotReady, match=r"cannot be continued: answered: mode 'fast\*' escalates"):
        await answer_of(replicas(llms, 8), ask)


@within()
async def test_a_stream_that_is_given_up_ends_with_an_error_event(llms: dict[str, LLM]) -> None:
    app = create_app(ContinuedEngine(replicas(llms, 2, 2, 2), Retries(first=0.0)))
    async with client_of(app) as client:
        asked = {"model": "tiny", "messages": CHAT, "max_tokens": 12, **SEEDED, "stream": True}
        answer = await client.post("/v1/chat/completions", json=asked, timeout=60)
        figures = await client.get("/metrics")
    assert answer.status_code == 200
    for said, count in (("continued_answers", 2), ("given_up_answers", 1)):
        assert f'fastslow:{said}_total{{model_name="tiny"}} {count}.0' in figures.text
    events = events_of(answer.text)
    assert "it was under way on 3 engines" in events[-1]["error"]["message"]
    assert events[-1]["error"]["code"] == "not_ready"


@pytest.mark.parametrize(("mode", "streamed"), [("fast", False), ("deep", True)])
@within()
async def test_an_answer_that_its_engine_cut_to_close_is_continued(
    llms: dict[str, LLM], tmp_path: Path, mode: str, streamed: bool
) -> None:
    """A replica that is taken away drains; what it cannot end in time another one ends."""
    sampling = {"max_tokens": 300, "ignore_eos": True, **SEEDED}
    ask = made_request("a", CHAT, sampling, mode=mode, speculation="off", streamed=streamed)
    pieces, whole = await answer_of(replicas(llms), ask)
    with open_tiny(write_model(tmp_path)) as short:
        inner = Replicas({"a": LocalEngine(short, "tiny"), "b": LocalEngine(llms["b"], "tiny")})
        stream = ContinuedEngine(inner, replace(QUICK, deaths=1)).stream(ask)
        ours = [await anext(stream) for _ in range(3 * streamed)]
        rest = asyncio.ensure_future(anext(stream))
        while not short.stats().running:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(inner.engines["a"].close())
        *more, last = [await rest, *[piece async for piece in stream]]
        await closing
        assert inner.names == ["a", "b"] and last.output is not None
        assert said(last.output.choices[0]) == said(whole.choices[0])
        assert joined([*ours, *more], 0)[:3] == joined(pieces, 0)[:3]


@within()
async def test_an_answer_that_its_caller_cancelled_ends_with_what_it_has(llms: dict[str, LLM]) -> None:
    sampling = {"max_tokens": 3000, "ignore_eos": True}
    engine = ContinuedEngine(inner := replicas(llms), QUICK)
    last = None
    async for piece in engine.stream(made_request("a", CHAT, sampling, mode="fast")):
        if last is None:
            assert await engine.cancel("a")
        last = piece
    assert last is not None and last.output is not None and inner.names == ["a"]
    assert last.output.finish_reason == "cancelled"
