"""Tools in every protocol, asked by the official clients: calls are valid, streamed or not, and go back."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from chat_templates import HARMONY, INSTRUCT, write_marked
from checkpoints import write_moge
from protocols import PATHS, WHERE, Clients, clients
from serve_tools import open_tiny, served
from tool_templates import GPT_OSS, HERMES, LLAMA3, PANGU, QWEN3_CODER

from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine

MARKS = ("[unused9]", "[unused10]", "[unused11]", "[unused12]", "<|python_tag|>", "<|eom_id|>")
PROMPTED = "{%- if add_generation_prompt %}{{- '<|start|>assistant"
TEMPLATES = {
    "hermes": HERMES, "llama3": LLAMA3, "pangu": PANGU, "qwen3-coder": QWEN3_CODER, "plain": INSTRUCT,
    "harmony": GPT_OSS, "harmony-opened": GPT_OSS.replace(PROMPTED, f"{PROMPTED}<|channel|>analysis<|message|>"),
}  # fmt: skip
NONE = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS: list[dict[str, Any]] = [
    {"name": "get_weather", "description": "Rain?", "parameters": WHERE, "strict": True},
    {"name": "clock", "parameters": NONE, "strict": False},
]
SCHEMAS = {one["name"]: one["parameters"] for one in FUNCTIONS}
SAME: dict[str, Any] = {"functions": FUNCTIONS, "most": 300, "seed": 5, "thinking_budget": 3}
ONE = {**SAME, "parallel": False}
with_some = pytest.mark.parametrize("served_by", ["hermes", "harmony"], indirect=True)


@pytest.fixture(scope="module", params=TEMPLATES)
def served_by(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    folder = tmp_path_factory.mktemp("tools")
    marks = HARMONY if "harmony" in request.param else MARKS
    vocab = write_marked(folder, TEMPLATES[request.param], marks)
    size: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32}
    write_moge(folder, vocab=vocab, max_position_embeddings=4096, **size)
    with open_tiny(folder) as llm, served(create_app(LocalEngine(llm, "tiny"))) as url, clients(url) as made:
        yield made


def check(calls: list[tuple[str, Any]]) -> None:
    assert calls
    for name, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.drafts(100, 80)
def test_a_required_call_is_the_same_under_every_drafter_in_every_protocol(
    served_by: Clients, request: pytest.FixtureRequest
) -> None:
    fields = {**ONE, "choice": "required", "temperature": 1}
    plain = served_by.ask("chat", **fields, speculation="off")
    assert plain.end == "tool_calls" and plain.text == "" and len(plain.calls) == 1
    check(plain.calls)
    opened = "opened" in request.node.name
    assert plain.tokens[2] == 3 if opened else plain.tokens[2] <= 3
    for protocol, streamed, drafter in (
        ("messages", True, "ngram"), ("responses", True, "auto"), ("chat", True, "self"), ("messages", False, "auto"),
        ("responses", False, "auto"),
    ):  # fmt: skip
        assert served_by.ask(protocol, streamed, **fields, speculation=drafter) == plain, protocol


@with_some
@pytest.mark.parametrize("protocol", PATHS)
def test_a_named_function_is_called(served_by: Clients, protocol: str) -> None:
    name = "clock" if protocol == "chat" else "get_weather"
    made = served_by.ask(protocol, **ONE, choice=name)
    assert [called for called, _ in made.calls] == [name]
    check(made.calls)


@pytest.mark.parametrize("served_by", ["hermes", "llama3", "harmony"], indirect=True)
def test_free_answers_are_those_of_a_chat(served_by: Clients) -> None:
    for seed in range(2):
        fields = {**SAME, "seed": seed, "most": 40, "temperature": 1}
        made = served_by.ask("chat", **fields)
        assert made.end in ("stop", "length", "tool_calls")
        for protocol, streamed in {"chat": True, "messages": seed == 0, "responses": seed == 1}.items():
            other = served_by.ask(protocol, streamed, **fields)
            assert (other.text, other.calls) == (made.text, made.calls)


@with_some
def test_tools_that_may_not_be_called_cost_nothing(served_by: Clients) -> None:
    fields: dict[str, Any] = {"most": 8, "temperature": 0, "thinking_budget": 3}
    bare = served_by.ask("chat", **fields)
    for protocol in PATHS:
        none = served_by.ask(protocol, **fields, functions=FUNCTIONS, choice="none")
        assert (none.text, none.tokens) == (bare.text, bare.tokens)
        assert served_by.ask(protocol, **fields, functions=FUNCTIONS).tokens[0] > bare.tokens[0]


@with_some
@pytest.mark.parametrize("protocol", PATHS)
def test_a_cut_call_comes_as_far_as_it_was_made(served_by: Clients, protocol: str) -> None:
    fields = {**ONE, "choice": "get_weather", "thinking_budget": 0, "temperature": 0}
    whole = served_by.ask(protocol, **fields).tokens[1]
    made = served_by.ask(protocol, **{**fields, "most": whole - 14})
    assert made.end == "length" and served_by.ask(protocol, True, **{**fields, "most": whole - 14}) == made


@with_some
def test_results_go_back(served_by: Clients) -> None:
    fields = {**ONE, "choice": "required", "temperature": 0}
    result, few = "dry<|im_end|>", {**ONE, "most": 4}
    made = served_by.made("chat", **fields).choices[0].message
    user = {"role": "user", "content": "The quick brown fox"}
    back = {"role": "tool", "tool_call_id": made.tool_calls[0].id, "content": result}
    turns = [user, made.model_dump(exclude_none=True), back]
    counted = served_by.ask("chat", **few, messages=turns).tokens[0]
    assert counted > served_by.ask("chat", **few).tokens[0]
    content = served_by.made("messages", **fields).content
    back = {"type": "tool_result", "tool_use_id": content[-1].id, "content": result}
    said = {"role": "assistant", "content": [block.model_dump() for block in content]}
    turns = [user, said, {"role": "user", "content": [back]}]
    assert served_by.ask("messages", **few, messages=turns).tokens[0] == counted
    output = served_by.made("responses", **fields).output
    items = [item.model_dump(exclude_none=True) for item in output]
    back = {"type": "function_call_output", "call_id": output[-1].call_id, "output": result}
    assert served_by.ask("responses", **few, input=[user, *items, back]).tokens[0] == counted
