"""Turns of a chat, as `LLM` takes them: what every protocol makes of its messages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fastslow.engine.params import shown
from fastslow.serve.api.config import ServerSettings

TEXT = ("text",)


class Part(BaseModel):
    """A part of a content. This server reads text alone."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(max_length=256)]
    text: str | None = None


def texts_of(where: str, content: str | Sequence[Part], kinds: Collection[str] = TEXT) -> list[str]:
    """The texts of a content; `where`: its place in the request, for messages."""
    if isinstance(content, str):
        return [content]
    return [_text(f"{where}[{place}]", part, kinds) for place, part in enumerate(content)]


def check_turns(field: str, turns: list[dict[str, Any]], settings: ServerSettings) -> None:
    """Refuse a chat that is too long to be looked at; `field`: which holds it."""
    if len(turns) > settings.messages:
        raise ValueError(f"{field} has {len(turns)} entries; at most {settings.messages} are taken")
    if (size := characters(turns)) > settings.prompt_characters:
        most = settings.prompt_characters
        raise ValueError(f"{field} hold {size} characters; at most {most} are taken")


def characters(turns: list[dict[str, Any]]) -> int:
    """How much text turns hold."""
    return sum(len(value) for turn in turns for value in turn.values() if isinstance(value, str))


def _text(where: str, part: Part, kinds: Collection[str]) -> str:
    if part.type not in kinds:
        names = " and ".join(repr(kind) for kind in kinds)
        verb = "is" if len(kinds) == 1 else "are"
        raise ValueError(f"{where}.type={shown(part.type)} is not read here; only {names} {verb}")
    if part.text is None:
        raise ValueError(f"{where}.text is missing; it must be a text")
    return part.text
