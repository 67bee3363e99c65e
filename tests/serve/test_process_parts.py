"""Frames, failures and streams between the server's process and the engine's."""

import math

import pytest
from loops import within
from processes_served import program
from refusals import refused
from requests_made import made_request

from fastslow.output import Completion, GenerationError, Metrics, Output, Piece
from fastslow.serve.api.engine import Busy, NotReady
from fastslow.serve.engines.process import messages
from fastslow.serve.engines.process.connection import CROWDED, AnswerStream, joined
from fastslow.serve.engines.process.messages import Call, FrameReader, StartAnswer, fields_of, frame

METRICS = Metrics("deep", "auto", 0.1, 0.02, 2, 1, 4, 1, 0, [1], 0.1, 0.1, [0.5], 0, 0, thinking_ended="budget")
OUTPUT = Output(None, [1, 2], [Completion("hi", "", [3, 4], "stop", None, [{3: -math.inf, 4: -0.5}] * 2, METRICS)])


def test_messages_arrive_whole_however_their_bytes_come() -> None:
    sent = [
        messages.Answers([(3, Piece("a", token_ids=[5], logprobs=[{5: -math.inf}])), (4, Piece(output=OUTPUT))], []),
        messages.Answers([], [(3, None), (4, messages.Failure("ValueError", "no", [OUTPUT]))]),
    ]  # fmt: skip
    data = b"".join(map(frame, sent))
    for size in (1, 3, len(data) - 1, len(data)):
        reader: FrameReader[messages.ToServer] = FrameReader(messages.ToServer)
        found = []
        for start in range(0, len(data), size):
            found += reader.feed(data[start : start + size])
        assert found == sent


def test_bytes_that_are_no_message_and_what_none_can_hold_are_refused() -> None:
    for data in (messages.LENGTH.pack(3) + b"abc", messages.LENGTH.pack(messages.LONGEST + 1), frame(["Unknown", 1])):
        with pytest.raises(ValueError):
            FrameReader[messages.ToServer](messages.ToServer).feed(data)
    with pytest.raises(ValueError):  # a type that is not the field's
        FrameReader[messages.ToEngine](messages.ToEngine).feed(frame(["Call", 1, 2]))
    whole = Call(1, "trace", ["a"])
    assert FrameReader[messages.ToEngine](messages.ToEngine).feed(frame(whole)) == [whole]
    refused("outside of 64 bits", frame, StartAnswer(0, fields_of(made_request("a", "b", {"seed": 2**64}))))
    refused("not valid Unicode: see its character 3", frame, StartAnswer(0, fields_of(made_request("a", "b \ud800"))))
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    refused("nested too deeply", fields_of, made_request("a", "b", {"stop": nested}))


@pytest.mark.parametrize("error", [
    ValueError("a=1 must be 2"), Busy("64 requests wait", 2.5), NotReady("the server is closing", refused=True),
    GenerationError("1 request failed", [OUTPUT]), TimeoutError("late"), RuntimeError("this LLM is closed"),
])  # fmt: skip
def test_errors_keep_their_kind_and_sentence_and_others_are_named(error: Exception) -> None:
    found = messages.error_of(messages.failure_of(error))
    assert type(found) is type(error) and str(found) == str(error)
    for name in ("outputs", "retry_after", "refused"):
        assert getattr(found, name, None) == getattr(error, name, None)
    assert type(messages.error_of(messages.failure_of(UnicodeError("no")))) is ValueError
    assert str(messages.error_of(messages.failure_of(KeyError("x")))) == "KeyError: 'x'"


def test_pieces_that_wait_are_joined_by_answer() -> None:
    pieces = [
        Piece(reasoning="think", token_ids=[1]), Piece("a", token_ids=[2]),
        Piece("b", token_ids=[3], logprobs=[{3: 0.0}]), Piece("x", token_ids=[4], index=1),
        Piece("c", token_ids=[5], logprobs=[{5: 0.0}]), Piece(reasoning="again", token_ids=[6]),
        Piece(output=OUTPUT),
    ]  # fmt: skip
    assert joined(pieces) == [
        Piece("abc", "think", [1, 2, 3, 5], None, [{3: 0.0}, {5: 0.0}]), Piece("x", token_ids=[4], index=1),
        Piece(reasoning="again", token_ids=[6]), Piece(output=OUTPUT),
    ]  # fmt: skip


@within()
async def test_a_stream_keeps_few_pieces() -> None:
    stream = AnswerStream()
    for n in range(10 * CROWDED):
        stream.put(Piece("x", token_ids=[n]))
        assert len(stream._pieces) <= CROWDED + 1
    stream.end(NotReady("gone"))
    assert await stream.take() == [Piece("x" * 10 * CROWDED, "", [*range(10 * CROWDED)])]
    with pytest.raises(NotReady, match="gone"):
        await stream.take()


def test_the_server_has_no_torch() -> None:
    """Torch takes memory and time: only the engine's process needs it."""
    said = "import sys, fastslow.serve.app, fastslow.serve.http.server; sys.exit('torch' in sys.modules)"
    with program("-c", said) as server:
        assert server.wait(60) == 0
