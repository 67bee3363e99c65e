"""The parser of a format, and an answer parsed at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastslow.engine.text.tool_formats import ToolFormat
from fastslow.serve.tool_calls.json_parser import JsonParser
from fastslow.serve.tool_calls.message_parser import MessageParser
from fastslow.serve.tool_calls.parser import ToolParser
from fastslow.serve.tool_calls.xml_parser import XmlParser

Functions = Mapping[str, Mapping[str, Any]]  # the schema of each function's parameters


def parser_of(form: ToolFormat, functions: Functions) -> ToolParser:
    """A fresh parser for one answer."""
    match form.kind:
        case "json":
            return JsonParser(form, functions)
        case "messages":
            return MessageParser(form, functions)
        case "xml":
            return XmlParser(form, functions)
