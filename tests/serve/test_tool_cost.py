"""Schemas of tools that take long: others do not wait for them, and what would take minutes is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from fastslow.serve.tool_calls import prepare as schemas

ASKED = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
COSTLY = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 999_983}}}


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": COSTLY, **fields}}


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
def test_schemas_are_looked_at_beside_the_loop(
    http: httpx.Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []

    def look(schema: str) -> str:
        try:
            looked.append(bool(asyncio.get_running_loop()))
        except RuntimeError:
            looked.append(False)
        return ""

    monkeypatch.setattr(schemas, "_error", look)
    parameters = {"type": "object", "properties": {"b": {"type": "string"}}}
    body: dict[str, Any] = {**ASKED, "tools": [tool(parameters=parameters)]}
    if path == "responses":
        body = {"input": "a", "max_output_tokens": 1, "tools": body["tools"]}
    elif path == "messages":
        body["tools"] = [{"name": "f", "input_schema": parameters}]
    assert http.post(f"/v1/{path}", json=body).status_code == 200
    assert looked == [False]


def test_a_costly_schema_is_refused_or_left_out(http: httpx.Client, logged: list[str]) -> None:
    strict = http.post("/v1/chat/completions", json={**ASKED, "tools": [tool(strict=True)]})
    assert strict.status_code == 400
    said = strict.json()["error"]["message"]
    assert said.startswith("tools[0].parameters cannot be held to: multipleOf: ")
    loose = http.post("/v1/chat/completions", json={**ASKED, "tools": [tool()]})
    assert loose.status_code == 200
    assert any("arguments of f are any object: multipleOf" in line for line in logged)
