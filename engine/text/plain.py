"""The template of last resort, for a model that brings none."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.engine.params import Thinking
from fastslow.engine.text.message import Message, check_messages


class PlainTemplate:
    """`User: ...` and `Assistant: ...`, one line to a turn. It knows no way to ask for thinking."""

    add_special = True
    source = ""

    def render(
        self,
        messages: Sequence[Message],
        thinking: Thinking = "auto",
        add_generation_prompt: bool = True,
    ) -> str:
        """See `ChatTemplate.render`."""
        check_messages(messages)
        lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return "\n".join([*lines, "Assistant:"] if add_generation_prompt else lines)
