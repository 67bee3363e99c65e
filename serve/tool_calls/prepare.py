"""What tools change in a request, and what reads its answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from loguru import logger

from fastslow.engine.sampling.json_schema import check_cost
from fastslow.engine.text.tool_formats import BY_NAME, ToolFormat
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.tool_calls.lark import CallGrammar, ChannelGrammar
from fastslow.serve.tool_calls.offered import Tool, ToolChoice, callable_tools
from fastslow.serve.tool_calls.parser import ToolParser

# as Python writes JSON, which is how models saw it
WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class ToolSupport:
    """The tools of one request; nothing where none are offered. parallel: an answer may hold several calls. grammar:
    that an answer without calls has to match. variables: of the chat template. sampling: fields of `SamplingParams`:
    the grammar, and tokens that end an answer with calls."""

    def __init__(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        card: ModelCard,
        grammar: Mapping[str, Any] | None = None,
    ) -> None:
        self.variables: dict[str, Any] = {}
        self.sampling: dict[str, Any] = {}
        self._form: ToolFormat | None = None
        called = callable_tools(tools, choice)
        if not called or choice.mode == "none":
            return
        self._form = form = BY_NAME[card.tool_format]
        self._functions = {tool.name: tool.parameters for tool in called}
        places = {tool.name: f"tools[{place}]" for place, tool in enumerate(tools)}
        schemas = {tool.name: _schema_of(tool, places[tool.name]) for tool in called}
        rules: CallGrammar | ChannelGrammar
        if form.kind == "messages":
            rules = ChannelGrammar(card.tool_tokens, schemas)
        else:
            rules = CallGrammar(form, card.tool_tokens, schemas, parallel)
        required = choice.mode == "required"
        self.variables["tools"] = [tool.as_variable() for tool in tools]
        text = rules.required() if required else rules.auto(_answer_schema(grammar))
        self.sampling["grammar"] = {"lark": text}
        if stops := [card.tool_tokens[mark] for mark in form.stops if mark in card.tool_tokens]:
            self.sampling["stop_token_ids"] = stops

    def parser(self) -> ToolParser | None:
        """A fresh one for each answer; None: no calls are looked for."""
        return None if self._form is None else ToolParser(self._form, self._functions)

    def added_to(self, request: GenerateRequest) -> GenerateRequest:
        """The request with what its tools change."""
        if self._form is None:
            return request
        sampling = {**request.sampling, **self.sampling}
        if stops := self.sampling.get("stop_token_ids"):
            sampling["stop_token_ids"] = [*(request.sampling.get("stop_token_ids") or ()), *stops]
        variables = {**(request.options.chat_template_kwargs or {}), **self.variables}
        return request.with_options(sampling=sampling, chat_template_kwargs=variables)


def _schema_of(tool: Tool, place: str) -> dict[str, Any]:
    """The schema of a tool's arguments. Unknown keywords of a tool that is not strict are left out, with a log line."""
    options = WRITTEN if tool.strict else {**WRITTEN, "lenient": True}
    schema = {"type": "object", **tool.parameters, "x-guidance": options}
    error = _error(json.dumps(schema))
    if not error:
        return schema
    if tool.strict:
        raise ValueError(f"{place}.parameters cannot be held to: {error}")
    logger.warning("arguments of {} are any object: its schema cannot be held to", place)
    return {"type": "object", "x-guidance": options}


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
    return "" if error.startswith("WARNING") else " ".join(error.split())[:300]


def _answer_schema(grammar: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema of an answer without calls; None: it is free."""
    if not grammar:
        return None
    if grammar.get("json_object"):
        return {"type": "object"}
    schema = grammar.get("json_schema")
    if not isinstance(schema, Mapping):
        raise ValueError("an answer that may call tools can only be held to a JSON schema besides")
    return schema
