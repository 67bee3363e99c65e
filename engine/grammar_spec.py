"""The form that an answer must have, as a user asks for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fastslow.engine.checked import Params, kept_as, shown

LONGEST_GRAMMAR, MOST_CHOICES = 262_144, 1000  # characters, texts
Schema = str | bool | Mapping[str, Any]
GrammarText = Annotated[str, Field(min_length=1, max_length=LONGEST_GRAMMAR)]
Choices = Annotated[tuple[GrammarText, ...], Field(min_length=1, max_length=MOST_CHOICES)]


class GrammarSpec(Params):
    """The form that an answer must have: exactly one of the fields. A schema is kept as its JSON text."""

    json_schema: Annotated[Schema | None, kept_as(GrammarText | None)] = Field(
        default=None, description="a JSON schema, or its text: the answer is JSON of that form"
    )
    json_object: Literal[True] | None = Field(default=None, description="any JSON object")
    regex: GrammarText | None = Field(
        default=None, description="the whole answer matches this expression"
    )
    choice: Annotated[Sequence[str] | None, kept_as(Choices | None)] = Field(
        default=None, description="the answer is one of these texts"
    )
    lark: GrammarText | None = Field(
        default=None, description="a grammar in llguidance's form of Lark"
    )
    gbnf: GrammarText | None = Field(
        default=None, description="a grammar in the GBNF of llama.cpp, or in Lark"
    )

    @field_validator("json_schema", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if value is None or isinstance(value, str):
            return value
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"it is no JSON ({shown(str(error))})") from None

    @property
    def kind(self) -> str:
        """The field that is given."""
        return self._given()[0]

    def model_post_init(self, _context: object) -> None:
        given = self._given()
        if len(given) != 1:
            raise ValueError(
                f"a grammar has exactly one of {', '.join(type(self).model_fields)}; given are {given or None}"
            )
        if sum(map(len, self.choice or ())) > LONGEST_GRAMMAR:
            raise ValueError(f"choice holds more than {LONGEST_GRAMMAR} characters")

    def _given(self) -> list[str]:
        return [name for name, value in self if value is not None]
