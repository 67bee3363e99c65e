"""Values whose every field is checked, and the sentences that say what is wrong with one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    TypeVar,
    get_args,
    get_type_hints,
    overload,
)

from pydantic import BaseModel, ConfigDict, GetPydanticSchema, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

SHOWN = 80  # characters of a value in a message
OBJECT = "be a valid dictionary or object to extract fields from"  # as pydantic says it
WORD = re.compile(r"\w{1,64}")
KIND = re.compile(r"\[key\]|str|int|float|bool|constrained-\w+|[a-z-]+\[.*\]")  # of a value


def kept_as(kind: Any) -> GetPydanticSchema:
    """For a field whose values are kept as `kind`, though type checkers allow more to be given."""
    return GetPydanticSchema(lambda _given, schema_of: schema_of(kind))


if TYPE_CHECKING:
    Kept_co = TypeVar("Kept_co", covariant=True)
    Given_contra = TypeVar("Given_contra", contravariant=True)

    class Accepts(Generic[Kept_co, Given_contra]):
        """A field that is kept, and read, as the first type; the second one may be given."""

        @overload
        def __get__(self, owner: None, kind: type, /) -> Any: ...
        @overload
        def __get__(self, owner: object, kind: type | None = None, /) -> Kept_co: ...
        def __get__(self, owner: Any, kind: Any = None, /) -> Any: ...
        def __set__(self, owner: object, value: Given_contra, /) -> None: ...
else:

    class Accepts:
        def __class_getitem__(cls, kinds: tuple[Any, Any]) -> Any:
            kept, given = kinds
            return Annotated[given, kept_as(kept)]


class Params(BaseModel):
    """Immutable, and no unknown or mistyped field slips through. ValueError: one sentence with the field, its value
    and the limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ValueError(sentence(error, type(self).model_fields)) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Show people the types that may be given, without what pydantic checks."""

        def given() -> None: ...

        given.__annotations__ = {name: field.annotation for name, field in cls.model_fields.items()}
        kinds, own = get_type_hints(given), cls.__signature__
        shown = [p.replace(annotation=kinds.get(n, Any)) for n, p in own.parameters.items()]
        cls.__signature__ = own.replace(parameters=shown)

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


def sentence(error: ValidationError, fields: Mapping[str, FieldInfo] = {}) -> str:
    """The first thing wrong, as one sentence; `fields`, or those inside of them, are offered for an unknown name."""
    return first_wrong(error.errors(), fields)[1]


def first_wrong(
    errors: Sequence[ErrorDetails], fields: Mapping[str, FieldInfo] = {}, whole: str = ""
) -> tuple[str, str]:
    """The place of the first thing wrong, and `sentence` about it. whole: what a value without a place is called."""
    first = errors[0]
    place = _path(first)
    where = place or whole
    if first["type"] == "extra_forbidden":
        *outer, name = first["loc"]
        for part in outer:
            fields = _inside(fields[part].annotation) if part in fields else {}  # type: ignore[index]
        hint = nearest(str(name), fields) if fields else ""
        return place, f"field {shown(where)} is unknown{hint}"
    if first["type"] == "missing":
        return place, f"field {where!r} is missing"
    said = str(first["msg"]).removeprefix("Value error, ")
    same = [one for one in errors if _path(one) == place]  # one for each kind of value
    limits = dict.fromkeys(_limit(str(one["msg"])) for one in same)
    limit = " or ".join(filter(None, limits)).replace(" or be ", " or ")
    if not where or (not limit and said.startswith(place)):
        return place, said
    return place, f"{where[:60]}={shown(first['input'])} must {limit or f'be valid: {said}'}"


def _limit(said: str) -> str:
    """Return what a value should be, as "be an object"; "" where its own sentence says it."""
    limit = said.partition(" should ")[2].partition(" after validation")[0]
    return "be an object" if limit == OBJECT else limit


def _path(error: ErrorDetails) -> str:
    """Return the place of an error, "messages[0].content"; parts that name a kind are pydantic's, not the user's."""
    own = {0, len(error["loc"]) - 1 if error["type"] == "extra_forbidden" else 0}
    each = enumerate(error["loc"])
    kept = [part for place, part in each if place in own or not KIND.fullmatch(str(part))]
    words = (f".{x}" if isinstance(x, str) and WORD.fullmatch(x) else f"[{shown(x)}]" for x in kept)
    return "".join(words).lstrip(".")


def _inside(kind: Any) -> Mapping[str, FieldInfo]:
    """The fields of the model among the kinds of a value."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_fields
    return next(filter(None, map(_inside, get_args(kind))), {})
