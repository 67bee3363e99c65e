"""`GenerateOptions`: one model, from which keywords, help and messages to other processes come."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from fastslow import LLM, AsyncLLM, Decided, Mode, ResumeState, SamplingParams
from fastslow.engine_args import AsyncArgs, EngineArgs
from fastslow.keywords import GenerateCall, ListOptions
from fastslow.request.options import GenerateOptions
from fastslow.serve.api.generate_request import GenerateRequest

FIELDS = GenerateOptions.model_fields
ONE = (LLM.stream, LLM.stream_chat, LLM.submit, LLM.tokenize)
ASYNC = (AsyncLLM.generate, AsyncLLM.chat, AsyncLLM.stream, AsyncLLM.stream_chat, AsyncLLM.submit)


@pytest.mark.parametrize(
    "call", [*ONE, *ASYNC, LLM.generate, LLM.chat], ids=lambda c: c.__qualname__
)
def test_every_call_shows_every_option(call: Any) -> None:
    _, prompt, *options = inspect.signature(call).parameters.values()
    expected = GenerateCall.model_fields if call in (LLM.generate, LLM.chat) else FIELDS
    assert {one.name for one in options} == set(expected)
    assert options[0].name == "sampling" and prompt.kind is options[0].kind
    assert all(f"{name}: {field.description}" in call.__doc__ for name, field in expected.items())
    awaited = call in (AsyncLLM.generate, AsyncLLM.chat)
    assert inspect.iscoroutinefunction(call) is awaited


def test_an_llm_and_an_async_llm_show_the_arguments_of_the_engine() -> None:
    arguments = inspect.signature(EngineArgs).parameters
    assert inspect.signature(LLM).parameters == arguments
    assert inspect.signature(AsyncLLM).parameters == inspect.signature(AsyncArgs).parameters
    assert all(f"    {name}: " in (LLM.__init__.__doc__ or "") for name in arguments)


def test_type_checkers_know_the_options_of_lists() -> None:
    alone = {"sampling", "sampling_defaults", "trace", "answered"}  # what one prompt has
    assert set(ListOptions.__annotations__) == set(GenerateCall.model_fields) - alone


def test_a_request_crosses_as_plain_values_and_comes_back() -> None:
    answered = ResumeState([[1, 2], []], [Decided("fast", "short", 2), None], [1, None])
    options = GenerateOptions(
        sampling={"max_tokens": 5}, mode={"base": "fast"}, timeout=3.5, answered=answered
    )
    request = GenerateRequest("id", [{"role": "user", "content": "x"}], options, avoid=("a",))
    fields = request.to_fields()
    assert set(fields["options"]) == {"sampling", "mode", "timeout", "answered"}
    back = GenerateRequest.from_fields(json.loads(json.dumps(fields)))
    assert back.options == options and (back.id, list(back.avoid)) == ("id", ["a"])


def test_keywords_that_do_not_fit(llm: LLM) -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'prompt'"):
        llm.submit()  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="multiple values for argument 'prompt'"):
        llm.submit("a", prompt="b")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="too many positional arguments"):
        llm.submit("a", None, "deep")  # type: ignore[call-overload]
    assert llm.tokenize(prompt="1 + 1") == llm.tokenize("1 + 1")  # type: ignore[call-overload]


def test_a_class_of_sampling_parameters_keeps_its_own_defaults() -> None:
    class Short(SamplingParams):
        max_tokens: int = 7

    mode = Mode(name="cool", sampling=SamplingParams(temperature=0.5))
    merged = GenerateOptions(sampling=Short(top_p=0.9)).sampling_in(mode)
    assert (merged.max_tokens, merged.temperature, merged.top_p) == (7, 0.5, 0.9)
