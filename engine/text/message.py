"""Chat messages, as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Message = Mapping[str, str]  # role, content, and whatever else a template may know

ROLES = ("system", "user", "assistant", "tool")


def check_messages(messages: Sequence[Message]) -> None:
    """Raise ValueError with one sentence if there is no message, or for the first one whose role
    is not among ROLES or whose content is not a string."""
    if not messages:
        raise ValueError("messages is empty; it needs at least one message")
    for index, message in enumerate(messages):
        if not hasattr(message, "get"):
            kind = type(message).__name__
            raise ValueError(f"messages[{index}] is a {kind}; it must have a role and a content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(
                f"messages[{index}].role is {role!r}; it must be one of {', '.join(ROLES)}"
            )
        match content:
            case str():
                continue
            case None:
                raise ValueError(f"messages[{index}].content is missing; it must be a string")
            case _:
                kind = type(content).__name__
                raise ValueError(f"messages[{index}].content is a {kind}; it must be a string")
