"""JSON on one line, as events hold it."""

from __future__ import annotations

import json
from json.encoder import encode_basestring
from typing import Any

SEPARATORS = "\x85", "\u2028", "\u2029"  # many clients end a line at these, too


def quoted(text: str) -> str:
    """A text as JSON, on one line."""
    return _on_one_line(encode_basestring(text))


def dumped(value: Any) -> str:
    """A value as JSON, on one line and without spaces."""
    return _on_one_line(
        json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    )


def named_event(name: str, value: Any) -> str:
    """A server-sent event that has a name."""
    return f"event: {name}\ndata: {dumped(value)}\n\n"


def _on_one_line(made: str) -> str:
    if not made.isascii():
        for separator in SEPARATORS:
            made = made.replace(separator, f"\\u{ord(separator):04x}")
    return made
