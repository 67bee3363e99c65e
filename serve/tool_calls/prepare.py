"""What a request with tools asks of the engine, and what reads its answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from loguru import logger

from fastslow.engine.sampling.json_schema import check_cost
from fastslow.engine.text.tool_formats import BY_NAME, ToolFormat
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.tool_calls.lark import CallGrammar, ChannelGrammar
from fastslow.serve.tool_calls.offered import Tool, ToolChoice, check
from fastslow.serve.tool_calls.parser import ToolParser
from fastslow.serve.tool_calls.parsers import Functions, parser_of

# as Python writes JSON, which is how models saw it
WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY = {"type": "object"}


def schema_of(tool: Tool, place: str) -> dict[str, Any]:
    """The schema of a tool's arguments, with the library's options. What a tool that is not strict asks
    beyond the library's keywords is left out, and the log says so.
    """
    given = {"type": "object", **tool.parameters}
    options = WRITTEN if tool.strict else {**WRITTEN, "lenient": True}
    schema = {**given, "x-guidance": options}
    error = _error(json.dumps(schema))
    if not error:
        return schema
    if tool.strict:
        raise ValueError(f"{place}.parameters cannot be held to: {error}")
    logger.warning("arguments of {} are any object: {}", tool.name, error)
    return {**ANY, "x-guidance": options}


@lru_cache(1024)
def _error(schema: str) -> str:
    """What is wrong with a schema; "" = nothing."""
    import llguidance

    matcher = llguidance.LLMatcher
    try:
        check_cost(json.loads(schema))
        error = matcher.validate_grammar(matcher.grammar_from_json_schema(schema))
    except ValueError as caught:
        error = str(caught)
    if error.startswith("WARNING"):
        return ""
    return " ".join(error.split())[:300]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request's tools.

    Attributes:
        variables: of the chat template.
        sampling: fields of `SamplingParams`: the grammar, and tokens that end an answer with calls.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    form: ToolFormat | None = None
    functions: Functions = field(default_factory=dict)

    def parser(self) -> ToolParser | None:
        """A fresh one for each answer; None: no calls are looked for."""
        return None if self.form is None else parser_of(self.form, self.functions)


def prepare(
    tools: Sequence[Tool],
    choice: ToolChoice,
    parallel: bool,
    card: ModelCard,
    grammar: Mapping[str, Any] | None = None,
) -> Prepared:
    """What the tools of a request change in it; nothing where none are offered.

    Args:
        parallel: an answer may hold several calls.
        grammar: that an answer without calls has to match.
    """
    if not tools and (choice.mode == "required" or choice.names):
        raise ValueError("tool_choice asks for a call, but there are no tools")
    called = check(tools, choice)
    if not tools or choice.mode == "none":
        return Prepared()
    form = BY_NAME[card.tool_format]
    places = {tool.name: f"tools[{place}]" for place, tool in enumerate(tools)}
    schemas = {tool.name: schema_of(tool, places[tool.name]) for tool in called}
    sampling: dict[str, Any] = {}
    stops = [card.tool_tokens[mark] for mark in form.stops if mark in card.tool_tokens]
    if stops:
        sampling["stop_token_ids"] = stops
    answer = _schema(grammar) if choice.mode == "auto" else None
    rules: CallGrammar | ChannelGrammar
    if form.kind == "messages":
        rules = ChannelGrammar(card.tool_tokens, schemas)
    else:
        rules = CallGrammar(form, card.tool_tokens, schemas, parallel)
    text = rules.required() if choice.mode == "required" else rules.auto(answer)
    sampling["grammar"] = {"lark": text}
    functions = {tool.name: tool.parameters for tool in called}
    return Prepared({"tools": [tool.as_variable() for tool in tools]}, sampling, form, functions)


def _schema(grammar: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema of an answer without calls; None: it is free."""
    if not grammar:
        return None
    if grammar.get("json_object"):
        return {"type": "object"}
    schema = grammar.get("json_schema")
    if not isinstance(schema, Mapping):
        raise ValueError("an answer that may call tools can only be held to a JSON schema besides")
    return schema


def offered(
    ask: GenerateRequest, tools: Sequence[Tool], choice: ToolChoice, parallel: bool, card: ModelCard
) -> tuple[GenerateRequest, Prepared]:
    """The ask with its tools, and what reads the calls in its answers."""
    prepared = prepare(tools, choice, parallel, card, ask.sampling.get("grammar"))
    return (ask if prepared.form is None else with_tools(ask, prepared)), prepared


def with_tools(ask: GenerateRequest, prepared: Prepared) -> GenerateRequest:
    """An ask with what its tools change."""
    sampling = {**ask.sampling, **prepared.sampling}
    if stops := prepared.sampling.get("stop_token_ids"):
        sampling["stop_token_ids"] = [*(ask.sampling.get("stop_token_ids") or ()), *stops]
    variables = {**(ask.options.chat_template_kwargs or {}), **prepared.variables}
    return ask.with_options(sampling=sampling, chat_template_kwargs=variables)
