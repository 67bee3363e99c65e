"""Chunks are put together from texts, and are JSON all the same."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from fastslow.serve.http.json_text import quoted
from fastslow.serve.openai.chunks import ChunkFrame


@given(st.text())
def test_a_text_stays_itself_on_one_line(text: str) -> None:
    made = quoted(text)
    assert json.loads(made) == text and len(made.splitlines()) == 1


@given(st.text(), st.booleans())
def test_frames_are_json(name: str, with_usage: bool) -> None:
    frame = ChunkFrame("id", "kind", 7, name, with_usage)
    chunk, last, usage = (
        json.loads(made.removeprefix("data: "))
        for made in (frame.chunk('{"a":1}'), frame.last('{"a":2}', more=3), frame.usage({"b": 4}))
    )
    common = {"id": "id", "object": "kind", "created": 7, "model": name}
    null = {"usage": None} if with_usage else {}
    assert chunk == {**common, "choices": [{"a": 1}], **null}
    assert last == {**common, "choices": [{"a": 2}], **null, "more": 3}
    assert usage == {**common, "choices": [], "usage": {"b": 4}}
