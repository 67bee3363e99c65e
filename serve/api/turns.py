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


Parts = Annotated[list[Part], Field(fail_fast=True)]


def texts_of(
    where: str, content: str | Sequence[Part] | None, kinds: Collection[str] = TEXT
) -> list[str]:
    """The texts of a content; `where`: its place in the request, for messages."""
    if content is None:
        raise ValueError(f"{where} is missing; it must be a text or a list of text parts")
    if isinstance(content, str):
        return [content]
    for place, part in enumerate(content):
        if part.type not in kinds:
            names = " and ".join(repr(kind) for kind in kinds)
            verb = "is" if len(kinds) == 1 else "are"
            said = f"{where}[{place}].type={shown(part.type)} is not read here; only {names} {verb}"
            raise ValueError(said)
    return [needed(f"{where}[{place}].text", part.text) for place, part in enumerate(content)]


def needed(where: str, value: str | None) -> str:
    """A field that this kind of turn must have."""
    if value is None:
        raise ValueError(f"{where} is missing; it must be a text")
    return value


def check_turns(field: str, turns: list[dict[str, Any]], settings: ServerSettings) -> None:
    """Refuse a chat that is too long to be looked at; `field`: which holds it."""
    if len(turns) > settings.messages:
        raise ValueError(f"{field} has {len(turns)} entries; at most {settings.messages} are taken")
    texts = [value for turn in turns for value in turn.values() if isinstance(value, str)]
    if (size := sum(map(len, texts))) > settings.prompt_characters:
        most = settings.prompt_characters
        raise ValueError(f"{field} has {size} characters; at most {most} are taken")
