"""Schemas of arguments as the grammar takes them."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from loguru import logger

from fastslow.engine.sampling.json_schema import check_cost
from fastslow.serve.tool_calls.offered import Tool

# as Python writes JSON, which is how models saw it
WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY = {"type": "object"}


def schema_of(tool: Tool, place: str) -> dict[str, Any]:
    """The schema of a tool's arguments, with the library's options. What a tool that is not strict asks
    beyond the library's keywords is left out, and the log says so.

    Raises:
        ValueError: the tool is strict, and its schema cannot be held to; `place`: of the tool.
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
