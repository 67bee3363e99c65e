"""Tools in a chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastslow.serve.api.ask import Ask
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.tool_calls.offered import Tool, ToolChoice
from fastslow.serve.tool_calls.openai_calls import OpenAICalls
from fastslow.serve.tool_calls.parse import parser_of
from fastslow.serve.tool_calls.prepare import Prepared, prepare
from fastslow.serve.tool_calls.protocols import openai_choice, openai_tools

T = TypeVar("T")
Parsers = Callable[[], OpenAICalls]
"""Makes the reader of one answer."""


async def beside_others(tools: Sequence[Any] | None, make: Callable[[], T]) -> T:
    """What `make` returns. With tools it runs in a thread: their schemas may take a second to look at, in which
    other requests go on."""
    return await asyncio.to_thread(make) if tools else make()


def chat_tools(
    ask: Ask, tools: list[Any] | None, tool_choice: Any, parallel: bool, card: ModelCard
) -> tuple[Ask, Parsers | None]:
    """The ask with its tools, and what makes the reader of each answer; None: no calls are looked for.

    Raises:
        ValueError: one sentence about what does not fit.
    """
    choice = openai_choice(tool_choice)
    ask, prepared = offered(ask, openai_tools(tools), choice, parallel, card)
    form = prepared.form
    if form is None:
        return ask, None
    return ask, lambda: OpenAICalls(parser_of(form, prepared.functions))


def offered(
    ask: Ask, tools: Sequence[Tool], choice: ToolChoice, parallel: bool, card: ModelCard
) -> tuple[Ask, Prepared]:
    """The ask with its tools, and what reads the calls in its answers.

    Raises:
        ValueError: one sentence about what does not fit.
    """
    prepared = prepare(tools, choice, parallel, card, ask.sampling.get("grammar"))
    return (ask if prepared.form is None else with_tools(ask, prepared)), prepared


def with_tools(ask: Ask, prepared: Prepared) -> Ask:
    """An ask with what its tools change."""
    sampling = {**ask.sampling, **prepared.sampling}
    if stops := prepared.sampling.get("stop_token_ids"):
        sampling["stop_token_ids"] = [*(ask.sampling.get("stop_token_ids") or ()), *stops]
    variables = {**(ask.chat_template_kwargs or {}), **prepared.variables}
    return replace(ask, sampling=sampling, chat_template_kwargs=variables)
