"""Chat templates written in Jinja, as checkpoints bring them, run in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastslow.engine.params import Thinking
from fastslow.engine.text.message import Message, check_messages

SWITCHES = "enable_thinking", "thinking"  # Qwen's name and DeepSeek's; a template has one or none


class JinjaTemplate:
    """A template in transformers' dialect of Jinja.

    It runs in an immutable sandbox: no private attributes, no changes to what it is given. It sees
    `messages`, `add_generation_prompt`, `bos_token`, `eos_token`, empty `tools` and `documents`,
    and the switch `enable_thinking`, which some call `thinking`, unless thinking is "auto".
    """

    add_special = False

    def __init__(
        self, source: str, name: str, bos_token: str | None, eos_token: str | None
    ) -> None:
        """`name`: where the source is from, for messages. Raises ValueError if it is not Jinja."""
        self.source = source
        self._name = name
        self._given = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            line = f" line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ValueError(f"{name}{line}: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        thinking: Thinking = "auto",
        add_generation_prompt: bool = True,
    ) -> str:
        """See `ChatTemplate.render`."""
        check_messages(messages)
        given: dict[str, Any] = {"messages": messages, "tools": None, "documents": None}
        if thinking != "auto":
            given |= dict.fromkeys(SWITCHES, thinking == "on")
        try:
            return self._template.render(
                **self._given, **given, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # noqa: BLE001 - a template is a program: it may raise anything
            raise ValueError(f"{self._name}: {error}") from None


class _GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's words for training; here it
    is only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes < as \u003c, for HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
