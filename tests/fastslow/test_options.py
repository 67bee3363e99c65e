"""`GenerateOptions`: one model, from which keywords, help and messages to other processes come."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from gate import open_llm
from refusals import refused

from fastslow import LLM, AsyncLLM, Decided, Mode, ResumeState, SamplingParams
from fastslow.engine_args import AsyncArgs, EngineArgs
from fastslow.keywords import GenerateCall, ListOptions
from fastslow.models.locate import SHIPPED, builtin_path
from fastslow.request.options import GenerateOptions, model_sampling
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.messages import fields_of, request_of

FIELDS = GenerateOptions.model_fields
ONE = (LLM.stream, LLM.stream_chat, LLM.submit, LLM.tokenize)
ASYNC = (AsyncLLM.generate, AsyncLLM.chat, AsyncLLM.stream, AsyncLLM.stream_chat, AsyncLLM.submit)


@pytest.mark.parametrize("call", [*ONE, *ASYNC, LLM.generate, LLM.chat], ids=lambda c: c.__qualname__)
def test_every_call_shows_every_option(call: Any) -> None:
    _, prompt, *options = inspect.signature(call).parameters.values()
    expected = GenerateCall.model_fields if call in (LLM.generate, LLM.chat) else FIELDS
    assert {one.name for one in options} == set(expected)
    assert options[0].name == "sampling" and prompt.kind is options[0].kind
    assert all(f"{name}: {field.description}" in call.__doc__ for name, field in expected.items())
    awaited = call in (AsyncLLM.generate, AsyncLLM.chat)
    assert inspect.iscoroutinefunction(call) is awaited


def test_an_llm_shows_its_arguments_and_type_checkers_know_the_options() -> None:
    for shown, args in ((LLM, EngineArgs), (AsyncLLM, AsyncArgs)):
        kinds, own = get_type_hints(args), inspect.signature(args).parameters
        seen = inspect.signature(shown).parameters
        assert list(seen) == list(own)
        assert all(one.replace(annotation=kinds[name]) == seen[name] for name, one in own.items())
        assert "Annotated" not in str(seen)
        assert all(f"    {name}: " in (LLM.__init__.__doc__ or "") for name in own if name != "max_waiting")
    alone = {"sampling", "sampling_defaults", "trace", "answered"}  # what one prompt has
    assert set(ListOptions.__annotations__) == set(GenerateCall.model_fields) - alone


def test_a_request_crosses_as_plain_values_and_keywords_must_fit(llm: LLM) -> None:
    answered = ResumeState([[1, 2], []], [Decided("fast", "short", 2), None], [1, None])
    options = GenerateOptions(sampling={"max_tokens": 5}, mode={"base": "fast"}, timeout=3.5, answered=answered)
    request = GenerateRequest("id", [{"role": "user", "content": "x"}], options, avoid=("a",))
    fields = fields_of(request)
    assert set(fields["options"]) == {"sampling", "mode", "timeout", "answered"}
    back = request_of(json.loads(json.dumps(fields)))
    assert back.options == options and (back.id, list(back.avoid)) == ("id", ["a"])
    for wrong in ({}, {"tokens": 3}, {"tokens": [[1]], "decided": [["fast"]]}):
        refused("answered.tokens=3|field 'answered.*' is missing", GenerateOptions, answered=wrong)
    with pytest.raises(TypeError, match="too many positional arguments"):
        llm.submit("a", None, "deep")  # type: ignore[call-overload]
    assert llm.tokenize(prompt="1 + 1") == llm.tokenize("1 + 1")  # type: ignore[call-overload]


def test_a_class_of_sampling_parameters_keeps_its_own_defaults() -> None:
    class Short(SamplingParams):
        max_tokens: int = 7

    mode = Mode(name="cool", sampling=SamplingParams(temperature=0.5))
    merged = GenerateOptions(sampling=Short(top_p=0.9)).sampling_in(mode)
    assert (merged.max_tokens, merged.temperature, merged.top_p) == (7, 0.5, 0.9)


OWN = {"temperature": 0.6, "top_p": 0.9}  # a model's


@pytest.mark.parametrize(("given", "cool", "found"), [
    ({}, None, (0.6, 0.9, 256)), ({"sampling": {"top_p": 0.5}}, None, (0.6, 0.5, 256)),
    ({"sampling": {"temperature": 1}}, 0.2, (1, 0.9, 256)), ({}, 0.2, (0.2, 0.9, 256)),
    ({"sampling_defaults": {"temperature": 0.7}}, None, (0.7, 0.9, 256)),
    ({"sampling": SamplingParams(max_tokens=3)}, None, (0, 1, 3)),
    ({"sampling": SamplingParams(max_tokens=3)}, 0.2, (0.2, 1, 3)),
])  # fmt: skip
def test_a_model_s_own_sampling_gives_way_to_all_else(
    given: dict[str, Any], cool: float | None, found: tuple[float, float, int]
) -> None:
    mode = Mode(sampling=None if cool is None else SamplingParams(temperature=cool))
    params = GenerateOptions(**given).sampling_in(mode, OWN)
    assert (params.temperature, params.top_p, params.max_tokens) == found


@pytest.mark.parametrize(("said", "found"), [
    ({}, {}),
    ({"eos_token_id": 2, "top_k": None}, {}),
    ({"do_sample": False, "temperature": 0.7, "top_k": 20}, {"temperature": 0, "top_k": 20}),
    ({"do_sample": True, "top_p": 0.9}, {"temperature": 1, "top_p": 0.9}),
    ({"temperature": 0.7, "max_length": 20}, {"temperature": 0.7}),
])  # fmt: skip
def test_what_generation_config_says_of_sampling(tmp_path: Path, said: dict[str, Any], found: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert model_sampling(tmp_path) == found


def test_generation_configs_of_shipped_models_and_broken_ones(tmp_path: Path) -> None:
    assert all(model_sampling(builtin_path(name)) == {"temperature": 0} for name in SHIPPED)
    assert model_sampling(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    refused(r"generation_config\.json: temperature='hot' ", model_sampling, tmp_path)


def test_calls_without_sampling_have_the_model_s_own_and_the_log_says_so_once(
    folder: Path, tmp_path: Path, logged: list[str]
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text('{"temperature": 50.0}')
    few = dict[str, Any](max_tokens=12, seed=1)
    with open_llm(tmp_path) as own:
        warm = own.generate("1 + 1", SamplingParams(**few, temperature=50)).token_ids
        assert warm != own.generate("1 + 1", SamplingParams(**few)).token_ids
        assert not any("give none" in line for line in logged)
        for _ in range(2):
            assert own.generate("1 + 1", few).token_ids == warm
    (said,) = [line.strip() for line in logged if "give none" in line]
    assert said == "sampling of calls that give none: temperature=50.0 (generation_config.json)"
