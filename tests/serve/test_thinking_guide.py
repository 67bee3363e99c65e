"""The page on how much to think: each row of its tables, over HTTP, in Python and on the command line."""

import functools
import itertools
import json
import operator
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from cli_tools import record
from fastapi.testclient import TestClient
from pages import blocks, prose

from fastslow import LLM, Mode, SamplingParams
from fastslow.engine.sampling.thinking_limits import Ending
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "thinking.md"
ASKED = "a = 5; b = a + 12; c = b * 3; What is c?"  # a thought of 50 tokens, of which the 25th ends a line
SAMPLED: dict[str, Any] = {"max_tokens": 192, "temperature": 0, "seed": 3}
SMALLER = {"300": "26", "500": "30", "100": "160"}  # numbers that this thought does not keep


def rows(title: str) -> list[list[str]]:
    """The cells of the table whose first row begins with this."""
    lines = [line for _, line in prose(PAGE)]
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {title} |")) + 2
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


WISHES = {wish: cells for wish, *cells in rows("you want")}
SEEN: dict[str, Callable[[Any], bool]] = {  # by words of a wish, what its figures must be
    "at once": lambda m: m["thinking_tokens"] == 0 and m["mode"] == "fast",
    "only when": lambda m: m["decision"] != "",
    "always": lambda m: (m["thinking_tokens"], m["thinking_ended"]) == (50, "model"),
    "never more": lambda m: (m["thinking_tokens"], m["thinking_ended"]) == (26, "budget"),
    "turn": lambda m: (m["thinking_tokens"], m["turn_budget_left"]) == (30, 0),
    "empty": lambda m: m["thinking_ended"] == "room" and m["tokens"] <= 192,
    "circles": lambda m: m["thinking_ended"] == "model",
    "settled": lambda m: m["thinking_ended"] == "model",
    "calmer": lambda m: m["thinking_tokens"] > 0,
    "effort": lambda m: m["mode"] == "deep*",
}


def code(cell: str) -> str:
    """The code in a cell, with numbers that bind."""
    return re.sub(r"\b[135]00\b", lambda found: SMALLER[found[0]], cell.strip("`"))


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    (block,) = (block for block in blocks(PAGE) if '"modes"' in block.text)
    with LLM("abacus", modes=json.loads(block.text)["modes"], kv_memory="16MiB", progress=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def client(llm: LLM) -> TestClient:
    config = ServerConfig(settings=ServerSettings(default_mode="support"))
    return TestClient(create_app(LocalEngine(llm, "abacus"), config), base_url="http://localhost")


def posted(client: TestClient, **fields: Any) -> Any:
    body = {"model": "abacus", "messages": [{"role": "user", "content": ASKED}], **SAMPLED}
    answer = client.post("/v1/chat/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("wish", WISHES)
def test_a_wish_is_the_same_everywhere(wish: str, llm: LLM, client: TestClient) -> None:
    _, http, python, shell = map(code, WISHES[wish])
    (seen,) = (check for word, check in SEEN.items() if word in wish)
    fields = json.loads(f"{{{http}}}")
    base = {} if {"mode", "reasoning_effort"} & {*fields} else {"mode": "deep"}
    made = posted(client, **base, **fields)
    assert seen(made["metrics"]), made
    message = made["choices"][0]["message"]
    said = [(message.get("reasoning") or "", message["content"])]
    call = eval(f"dict({python.replace('order-17', 'order-18')})", {"Mode": Mode})
    out = llm.chat(ASKED, SamplingParams(**SAMPLED), **call)
    said.append((out.reasoning, out.text))
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SAMPLED.items()]
    words += ["--speculation=off", "--kv-memory=4MiB", "--model=abacus", *shlex.split(shell)]
    done = record("generate", ASKED, *words)
    said.append((done["reasoning"], done["text"]))
    assert len({*said}) == 1 and all(text for _, text in said)


def test_the_whole_request_and_the_figures_of_its_answer(client: TestClient, llm: LLM) -> None:
    (body,) = (json.loads(one.text) for one in blocks(PAGE) if '"messages"' in one.text)
    made = posted(client, **body, mode="deep", turn_budget=90)
    assert made["choices"][0]["message"]["content"] == "5223"
    out = llm.chat(ASKED, mode="fast")
    for _, http, python in rows("you want to know"):
        for path in re.findall("`(.*?)`", http):
            functools.reduce(operator.getitem, path.split("."), made)
        for path in re.findall("`metrics.(.*?)`", python):
            assert hasattr(out.metrics, path)


def test_every_end_of_a_thought_is_explained() -> None:
    named = {name for cells in rows("`thinking_ended`") for name in re.findall('"(.*?)"', cells[0])}
    assert named == {*get_args(Ending), "model", "length"}


def test_one_name_for_the_whole_product(client: TestClient) -> None:
    for fields in ({}, {"mode": "support"}, {"model": "abacus:support"}):
        assert posted(client, **fields)["metrics"]["mode"] == "support"
    said = posted(client)["usage"]["completion_tokens_details"]
    assert said["turn_budget_left"] == 500 - said["reasoning_tokens"]
