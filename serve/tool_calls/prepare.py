"""What a request with tools asks of the engine, and what reads its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastslow.engine.text.tool_formats import BY_NAME, ToolFormat
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.tool_calls.channel_lark import ChannelGrammar
from fastslow.serve.tool_calls.lark import CallGrammar
from fastslow.serve.tool_calls.offered import Tool, ToolChoice, check
from fastslow.serve.tool_calls.parse import Functions, parser_of
from fastslow.serve.tool_calls.parser import ToolParser
from fastslow.serve.tool_calls.schemas import schema_of


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

    Raises:
        ValueError: one sentence about what does not fit.
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
