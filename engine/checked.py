"""Values whose every field is checked, and the sentences that say what is wrong with one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, GetPydanticSchema, ValidationError

SHOWN = 80  # characters of a value in a message


def kept_as(kind: Any) -> GetPydanticSchema:
    """For a field whose values are kept as `kind`, though type checkers allow more to be given."""
    return GetPydanticSchema(lambda _given, schema_of: schema_of(kind))


class Params(BaseModel):
    """Immutable, and no unknown or mistyped field slips through. ValueError: one sentence with the field, its value
    and the limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ValueError(sentence(error, type(self).model_fields)) from None

    # As in BaseModel itself: `model_validate` and nested fields need not call this.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def shown(value: object) -> str:
    """A value as a message shows it: of a long one only the beginning."""
    try:
        text = repr(value).replace("\n", " ")  # an array's has lines
    except Exception:  # noqa: BLE001 - its own, or of a number with thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest one, or all that there are."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:SHOWN], names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def sentence(error: ValidationError, fields: Iterable[str] = ()) -> str:
    """The first thing wrong, as one sentence; `fields` are offered for an unknown name."""
    first = error.errors()[0]
    where = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for place, part in enumerate(first["loc"])
        if not place or part not in ("[key]", "str")  # pydantic's, not the user's
    ).lstrip(".")
    if first["type"] == "extra_forbidden":
        return f"field {shown(where)} is unknown{nearest(where, fields) if fields else ''}"
    if first["type"] == "missing":
        return f"field {where!r} is missing"
    if not where:
        return str(first["msg"]).removeprefix("Value error, ")
    said = str(first["msg"]).removeprefix("Value error, ")
    limit = said.partition(" should ")[2] or f"be valid: {said}"
    return f"{where[:60]}={shown(first['input'])} must {limit}"
