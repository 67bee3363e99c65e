"""How a client asks for drafts: a drafter's name, or settings that name no file of the server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from fastslow.engine.params import Speculation, nearest, shown

FILES = "model", "head", "corpus"  # these are the operator's
NAMES = re.compile(r"[a-z]+([+|][a-z]+)*")
OPEN = [name for name in Speculation.model_fields if name not in FILES]

Speculate = Annotated[
    str | dict[str, Any] | None,
    Field(
        description="a drafter: suffix, ngram, head, self, off (plain decoding), several with + or |; or an "
        f"object of {', '.join(OPEN)}. It changes the speed, and the answer only under a lossy `accept`",
    ),
]


def speculation_of(wish: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    """The wish as the engine takes it.

    Raises:
        ValueError: an unknown field, or one that names a file.
    """
    if wish is None or isinstance(wish, str):
        return None if wish is None else _drafter("speculation", wish)
    for name in wish:
        if name in FILES:
            raise ValueError(f"speculation.{name} is a file of the server, and not for clients")
        if name not in OPEN:
            raise ValueError(f"speculation.{shown(name)[1:-1]} is unknown{nearest(name, OPEN)}")
    fields = dict(wish)
    if "drafter" in fields:
        fields["drafter"] = _drafter("speculation.drafter", fields["drafter"])
    Speculation(**fields)  # its own sentence about a value
    return fields


def _drafter(field: str, name: object) -> str:
    if not isinstance(name, str) or len(name) > 100 or not NAMES.fullmatch(name):
        raise ValueError(
            f"{field}={shown(name)} must be a drafter's name, such as 'suffix' or 'off'"
        )
    return name
