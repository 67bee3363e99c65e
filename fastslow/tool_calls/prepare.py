"""Changes that tools make to a request, and the readers of its answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from loguru import logger

from fastslow.engine.params import GrammarSpec
from fastslow.engine.sampling.grammars.closed_objects import closed
from fastslow.engine.sampling.grammars.json_schema import check_cost, check_schema, library
from fastslow.engine.text.tool_formats import ToolCalls
from fastslow.tool_calls.lark import CallGrammar, ChannelGrammar
from fastslow.tool_calls.offered import Tool, ToolChoice, callable_tools
from fastslow.tool_calls.parser import ToolParser

# as Python writes JSON, which is how models saw it
WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class ToolSupport:
    """The tools of one request; nothing where none are offered. parallel: an answer may hold several calls. calls: how
    the model writes them. grammar: that an answer without calls has to match. variables: of the chat template.
    sampling: fields of `SamplingParams`: the grammar, and tokens that end an answer with calls."""

    def __init__(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        calls: ToolCalls,
        grammar: GrammarSpec | Mapping[str, Any] | None = None,
    ) -> None:
        self.variables: dict[str, Any] = {}
        self.sampling: dict[str, Any] = {}
        called = callable_tools(tools, choice)
        self._calls = calls if called and choice.mode != "none" else None
        if self._calls is None:
            return
        form, marks = calls
        self._functions = {tool.name: tool.parameters for tool in called}
        places = {tool.name: f"tools[{place}]" for place, tool in enumerate(tools)}
        schemas = {tool.name: _schema_of(tool, places[tool.name]) for tool in called}
        rules: CallGrammar | ChannelGrammar
        if form.kind == "messages":
            rules = ChannelGrammar(marks, schemas)
        else:
            rules = CallGrammar(form, marks, schemas, parallel and not choice.once)
        required = choice.mode == "required"
        self.variables["tools"] = [tool.as_variable() for tool in tools]
        text = rules.required() if required else rules.auto(_answer_schema(grammar))
        self.sampling["grammar"] = {"lark": text}
        if stops := [marks[mark] for mark in form.stops if mark in marks]:
            self.sampling["stop_token_ids"] = stops

    def parser(self) -> ToolParser | None:
        """A fresh one for each answer; None: no calls are looked for."""
        return None if self._calls is None else ToolParser(self._calls.form, self._functions)


def _schema_of(tool: Tool, place: str) -> dict[str, Any]:
    """The schema of a tool's arguments. Unknown keywords of a tool that is not strict are left out, with a log line."""
    options = WRITTEN if tool.strict else {**WRITTEN, "lenient": True}
    schema = {"type": "object", **tool.parameters, "x-guidance": options}
    held, error = _held(json.dumps(schema))
    if not error:
        return held
    if tool.strict:
        raise ValueError(f"{place}.parameters cannot be held to: {error}")
    logger.warning("arguments of {} are any object: its schema cannot be held to", place)
    return {"type": "object", "x-guidance": options}


@lru_cache(1024)
def _held(schema: str) -> tuple[dict[str, Any], str]:
    """A schema with its objects closed, and what is wrong with it; "" = nothing."""
    matcher, held = library().LLMatcher, json.loads(schema)
    try:
        check_cost(held)
        held = closed(held)
        error = matcher.validate_grammar(matcher.grammar_from_json_schema(json.dumps(held)))
    except ValueError as caught:
        error = str(caught)
    return held, "" if error.startswith("WARNING") else " ".join(error.split())[:300]


def _answer_schema(grammar: GrammarSpec | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema of an answer without calls; None: it is free."""
    if not grammar:
        return None
    spec = grammar if isinstance(grammar, GrammarSpec) else GrammarSpec(**grammar)
    if spec.json_object:
        return {"type": "object"}
    if spec.json_schema is None:
        raise ValueError("an answer that may call tools can only be held to a JSON schema besides")
    schema: Mapping[str, Any] = closed(check_schema(str(spec.json_schema)))
    return schema
