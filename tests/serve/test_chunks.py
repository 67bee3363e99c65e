"""Events are one line of JSON each, whatever their texts hold."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from fastslow.serve.http.answer import dumped, event
from fastslow.serve.openai.chunks import Chunks


@given(st.text())
def test_a_text_is_one_line_of_json(text: str) -> None:
    made = dumped(text)
    assert json.loads(made) == text and len(made.splitlines()) == 1
    assert event([text]) == f"data: [{made}]\n\n" and event(text, "x").startswith(
        "event: x\ndata: "
    )


def test_numbers_that_a_client_sent_come_back() -> None:
    assert json.loads(dumped({"a": 10**30, "b": "\u2028"})) == {"a": 10**30, "b": "\u2028"}


def test_chunks_have_a_frame() -> None:
    choice = {"index": 0}
    plain, counted = Chunks({"id": "a"}, False), Chunks({"id": "a"}, True)
    one = {"id": "a", "choices": [choice]}
    assert json.loads(plain.chunk(choice)[6:]) == one and plain.end([]) == ""
    assert json.loads(counted.chunk(choice, metrics={})[6:]) == {
        **one,
        "usage": None,
        "metrics": {},
    }
    last = json.loads(counted.end([])[6:])
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 0
