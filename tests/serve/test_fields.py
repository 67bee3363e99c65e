"""Fields that every protocol shares become a `GenerateRequest`."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fastslow.engine.params import Mode, SamplingParams
from fastslow.request.options import GenerateOptions
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.fields import SharedFields
from fastslow.serve.api.keys import KeyLimits
from fastslow.serve.api.limits import Caller
from fastslow.serve.openai.chat_body import ChatRequest
from fastslow.serve.openai.completions import CompletionRequest
from fastslow.serve.openai.models import TokenizeRequest

MODES: dict[str, dict[str, Any]] = {name: {} for name in ("fast", "deep", "auto")}
CARD = ModelCard("m", 0, 4096, MODES, "groups", 8, thinks=True, has_head=False)
LEVELS = replace(CARD, efforts=("low", "medium", "high"))
KEEPS = replace(CARD, keeps_thoughts=("clear_thinking", False))
CHAT = [{"role": "user", "content": "hi"}]


def options_of(card: ModelCard = CARD, settings: ServerSettings | None = None, **fields: Any) -> GenerateOptions:
    settings, who = settings or ServerSettings(), Caller()
    return SharedFields(**fields).as_request(CHAT, who, card, settings, id="id").options


DEEP = {"base": "deep"}
BUDGET = {**DEEP, "thinking_budget": 7}
QUIET = {**DEEP, "thinking": "off"}
STEERING: dict[str, Any] = {
    "loop": True, "answer_room": 9, "confidence": {"every": 50}, "warn_at": 0.8, "warning": "Soon.",
    "turn_budget": 500, "thought": {"temperature": 1}, "answer": {"top_p": 0.5, "speculation": "off"},
}  # fmt: skip
STEERED = {**DEEP, **STEERING}
OFF, ADAPTIVE = {"thinking": {"type": "disabled"}}, {"thinking": {"type": "adaptive"}}


def gemini(**config: Any) -> dict[str, Any]:
    return {"extra_body": {"google": {"thinking_config": config}}}


WAYS: list[tuple[Any, list[dict[str, Any]]]] = [
    ("deep", [{}, {"reasoning_effort": "high"}, {"reasoning_effort": "max"}]),
    ("deep", [{"reasoning": {"effort": "xhigh"}}, {"reasoning_effort": "high", "mode": "deep"}]),
    ("fast", [{"mode": "fast"}, {"reasoning_effort": "minimal"}]),
    ({"base": "fast", "groups": 3}, [{"mode": {"base": "fast", "groups": 3}}]),
    ({**DEEP, "groups": 3}, [{"mode": {"groups": 3}}, {"groups": 3}]),
    ({"base": "fast", "experts": 0}, [{"experts": 0, "mode": "fast"}]),
    ({**DEEP, "latency_ms": 80}, [{"latency_ms": 80}]),
    ({"base": "fast", "thinking": "off"}, [{"reasoning_effort": "none"}]),
    (STEERED, [STEERING, {"mode": {**STEERING}}, {**STEERING, "mode": {"loop": True}}]),
    ({**DEEP, "thinking_budget": 4096}, [{"reasoning_effort": "medium"}]),
    (BUDGET, [{"reasoning_effort": "low", "thinking_budget": 7}, {"thinking_budget": 7}]),
    (BUDGET, [{"thinking_token_budget": 7}, {"reasoning": {"max_tokens": 7}}]),
    (BUDGET, [{"thinking_budget": 7, "thinking_token_budget": 7}]),
    ("auto", [ADAPTIVE, gemini(thinking_budget=-1), gemini(thinking_budget=-1)["extra_body"]]),
    ("fast", [{**ADAPTIVE, "mode": "fast"}, {**ADAPTIVE, "reasoning_effort": "minimal"}]),
    ({"base": "auto", "thinking_budget": 7}, [{**ADAPTIVE, "thinking_budget": 7}]),
    (BUDGET, [gemini(thinking_budget=7), gemini(thinking_level="low", thinking_budget=7)]),
    ({**DEEP, "thinking_budget": 1024}, [gemini(thinking_level="low")]),
    ({**DEEP, "thinking_budget": 0}, [gemini(thinking_budget=0)]),
    ("deep", [gemini(thinking_level="high", include_thoughts=True), {"extra_body": {}}]),
    (QUIET, [{**OFF, "reasoning_effort": "low"}, {**OFF, "reasoning_effort": "high"}]),
    ({**BUDGET, "thinking": "on"}, [{"thinking": {"type": "enabled", "budget_tokens": 7}}]),
    (QUIET, [{"thinking": {"type": "disabled"}}, {"reasoning": {"enabled": False}}]),
    (QUIET, [{"chat_template_kwargs": {"enable_thinking": False}}]),
    ({"base": "fast", "thinking": "on"}, [{"chat_template_kwargs": {"thinking": True}, "mode": "fast"}]),
]


@pytest.mark.parametrize(("fields", "mode"), [(fields, mode) for mode, ways in WAYS for fields in ways])
def test_every_way_to_say_how_to_think_is_one_mode(fields: dict[str, Any], mode: Any) -> None:
    ask = options_of(**fields)
    assert ask.mode == mode and ask.chat_template_kwargs is None


@pytest.mark.parametrize(("fields", "said"), [
    ({"thinking_budget": 3, "thinking_token_budget": 4}, "thinking_budget=3 and thinking_token"),
    ({"mode": "fast", "reasoning_effort": "high"}, "mode='fast' and reasoning_effort='high'"),
    ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort='high'"),
    ({"reasoning_effort": "none", "thinking_budget": 5}, "thinking is off"),
    (
        {"thinking": {"type": "enabled"}, "chat_template_kwargs": {"enable_thinking": False}},
        "thinking.type='enabled' contradict each other",
    ),
    (
        {"reasoning": {"enabled": True, "effort": "none"}},
        "reasoning.enabled=True and reasoning.effort='none' contradict",
    ),
    ({"mode": "fast", "reasoning": {"effort": "high"}}, "mode='fast' and reasoning.effort="),
    ({**gemini(thinking_level="low"), "reasoning_effort": "high"}, "thinking_level='low' contra"),
    ({**gemini(thinking_budget=3), "thinking_budget": 4}, "thinking_config.thinking_budget=3"),
    ({**gemini(thinking_budget=3), "google": gemini()["extra_body"]["google"], **OFF}, "is off"),
    ({**gemini(thinking_budget=-1), **OFF}, "thinking_budget=-1 lets the server choose"),
    ({**ADAPTIVE, "reasoning_effort": "none"}, "thinking is off, and thinking.type='adaptive'"),
    ({"mode": {"groups": 2}, "groups": 3}, "groups=3 and mode.groups=2"),
    ({"mode": {"sampling": {"n": 3}}}, "mode.sampling must be left out"),
    ({"mode": {"speculation": {"head": "x"}}}, "mode.speculation must be left out"),
    ({"mode": {"base": 3}}, "mode.base=3"),
    ({"turn_budget": 3, "mode": {"turn_budget": 4}}, "turn_budget=3 and mode.turn_budget=4"),
    ({"thought": {"speculation": {"head": "/x"}}}, "speculation.head is a file"),
    ({"mode": {"answer": {"speculation": {"model": "/x"}}}}, "speculation.model is a file"),
    ({"thought": {"speculation": "/etc/passwd"}}, "must be a drafter's name"),
    ({"chat_template_kwargs": {"enable_thinking": 1}}, "enable_thinking=1 must be true"),
    ({"timeout": 1e6}, "timeout=1000000.0 must be at most 3600 seconds"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex and guided_choice"),
    ({"guided_json": "{"}, "guided_json='{' is no JSON"),
    ({"guided_json": {"title": "x" * 140_000}}, "guided_json has 1400"),
    ({"guided_regex": ""}, "guided_regex='' must not be empty"),
    *(
        ({"speculation": wish}, said)
        for wish, said in (
            ("tuned.json", "must be a drafter's name"),
            ("/etc/passwd", "must be a drafter's name"),
            ({"drafter": "a.json"}, "must be a drafter's name"),
            ({"model": "/x"}, "speculation.model is a file"),
            ({"head": "/x"}, "speculation.head is a file"),
            ({"corpus": "/x"}, "speculation.corpus is a file"),
            ({"nods": 3}, "did you mean 'nodes'"),
            ({"nodes": 65}, "nodes=65"),
        )
    ),
])  # fmt: skip
def test_one_sentence_for_what_does_not_fit(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        options_of(**fields)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["thinking_budget_tokens", "max_thinking_tokens"])
def test_other_names_of_a_budget_are_refused_with_the_one_that_is_known(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is unknown; did you mean 'thinking_(token_)?budget'"):
        SharedFields.model_validate({name: 7})


def test_adaptive_thinking_keeps_to_the_modes_of_a_key() -> None:
    wish = SharedFields(**ADAPTIVE)  # type: ignore[arg-type]
    for modes, mode in ((["deep"], "deep"), (["auto", "deep"], "auto")):
        made = wish.as_request(CHAT, Caller(limits=KeyLimits(modes=modes)), CARD, ServerSettings(), id="id")
        assert made.options.mode == mode
    made = wish.as_request(CHAT, Caller(), CARD, ServerSettings(), id="id", default_mode="fast")
    assert made.options.mode == "fast", "the client named it beside the model"


def test_the_servers_own_number_of_tokens_and_a_models_own_levels_of_effort() -> None:
    assert options_of().sampling_defaults["max_tokens"] == 8192
    assert options_of(CARD, ServerSettings(max_tokens=30)).sampling_defaults["max_tokens"] == 30
    assert options_of(temperature=2).sampling == {"temperature": 2}
    levels = {"minimal": "low", "low": "low", "medium": "medium", "xhigh": "high", "max": "high"}
    for effort, level in levels.items():
        assert options_of(LEVELS, reasoning_effort=effort).chat_template_kwargs == {"reasoning_effort": level}
    assert options_of(LEVELS, reasoning_effort="none").chat_template_kwargs is None
    both = options_of(LEVELS, reasoning_effort="low", mode="fast")
    assert (both.mode, both.chat_template_kwargs) == ("fast", {"reasoning_effort": "low"})
    with pytest.raises(ValueError, match="contradict"):
        options_of(LEVELS, reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"})


KEPT, LEFT = {"clear_thinking": False}, {"clear_thinking": True}


@pytest.mark.parametrize(("card", "usual", "fields", "keeps", "variables"), [
    (CARD, False, {}, False, None), (CARD, False, {"keep_thoughts": True}, True, None), (CARD, True, {}, True, None),
    (CARD, True, {"keep_thoughts": False}, False, None), (KEEPS, False, {}, False, None),
    (KEEPS, False, {"keep_thoughts": True}, False, KEPT), (KEEPS, False, {"keep_thoughts": False}, False, LEFT),
    (KEEPS, True, {}, False, KEPT),
    (KEEPS, False, {"keep_thoughts": True, "chat_template_kwargs": LEFT}, False, LEFT),
])  # fmt: skip
def test_thoughts_are_kept_by_the_template_s_own_switch_or_else_by_the_engine(
    card: ModelCard, usual: bool, fields: dict[str, Any], keeps: bool, variables: Any
) -> None:
    settings = ServerSettings(keep_thoughts=usual)
    found = options_of(card, settings, **fields)
    assert (found.keep_thoughts, found.chat_template_kwargs) == (keeps, variables)
    for prompt in ("a text", [1, 2]):
        made = SharedFields().as_request(prompt, Caller(), card, settings, id="id").options
        assert not made.keep_thoughts and made.chat_template_kwargs is None


def test_grammars_under_every_name() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for fields, grammar in (
        ({"guided_json": schema}, {"json_schema": schema}),
        ({"guided_json": '{"type": "object"}'}, {"json_schema": {"type": "object"}}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_grammar": "start: /a/"}, {"gbnf": "start: /a/"}),
        ({"structured_outputs": {"json": schema}}, {"json_schema": schema}),
        ({"structured_outputs": {"json_object": True, "regex": None}}, {"json_object": True}),
    ):
        assert options_of(**fields).sampling == {"grammar": grammar}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for format, grammar in ((wanted, {"json_schema": schema}), ({"type": "json_object"}, {"json_object": True})):
        chat: Any = {"messages": CHAT, "response_format": format}
        assert ChatRequest(**chat).grammar(10_000) == grammar


def test_defaults_give_way_to_the_mode_and_the_client() -> None:
    ask = options_of(settings=ServerSettings(temperature=0.7, max_tokens=99), top_k=5)
    params = ask.sampling_in(Mode(sampling=SamplingParams(max_tokens=7, top_k=3)))
    assert (params.temperature, params.max_tokens, params.top_k) == (0.7, 7, 5)


@pytest.mark.parametrize(("kind", "fields"), [
    (ChatRequest, {"messages": [{"role": "user", "content": [1] * 9999}]}),
    (ChatRequest, {"messages": [{"role": "user", "content": 1}] * 9999}),
    (ChatRequest, {"messages": [], "tools": [1] * 9999}), (ChatRequest, {"messages": [], "stop": [1] * 9999}),
    (ChatRequest, {"messages": [], "stop_token_ids": ["x"] * 999}),
    (ChatRequest, {"messages": [], "guided_choice": [1] * 999}),
    (ChatRequest, {"messages": [], "logit_bias": {str(i): "x" for i in range(20_001)}}),
    (CompletionRequest, {"prompt": [*[1] * 9999, "x"]}), (CompletionRequest, {"prompt": [["x"] * 9999]}),
    (TokenizeRequest, {"tools": [1] * 9999}),
])  # fmt: skip
def test_only_the_first_of_many_wrong_values_is_looked_at(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    """Hundreds of thousands of errors would hold up all that the server does for seconds."""
    with pytest.raises(ValidationError) as error:
        kind.model_validate(fields)
    assert error.value.error_count() < 10


def test_a_default_mode_that_the_model_has_not() -> None:
    ServerSettings(default_mode="fast").fit(CARD)
    with pytest.raises(ValueError, match="^default mode 'fsat' is unknown; did you mean 'fast'"):
        ServerSettings(default_mode="fsat").fit(CARD)


OWN = replace(CARD, sampling={"temperature": 0.2, "top_p": 0.9})


@pytest.mark.parametrize(("card", "given", "found", "whose"), [
    (CARD, None, {"temperature": 1.0}, "OpenAI's"), (OWN, None, OWN.sampling, "the model's own"),
    (OWN, 0.7, {"temperature": 0.7, "top_p": 0.9}, "the settings"), (CARD, 0.7, {"temperature": 0.7}, "the settings"),
])  # fmt: skip
def test_a_request_without_sampling_has_the_model_s_own_unless_the_settings_say_it(
    card: ModelCard, given: float | None, found: dict[str, Any], whose: str, logged: list[str]
) -> None:
    settings = ServerSettings(temperature=given)
    settings.fit(card)
    values = ", ".join(f"{name}={value}" for name, value in found.items())
    said = f"sampling of requests that give none: {values} (temperature: {whose})"
    assert [line.strip() for line in logged] == [said]
    params = options_of(card, settings).sampling_in(Mode(), card.sampling)
    assert {name: getattr(params, name) for name in found} == found
    assert options_of(card, settings, temperature=0.4).sampling_in(Mode(), card.sampling).temperature == 0.4
