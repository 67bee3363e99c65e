"""Modes as presets: built in, from the checkpoint, from the user, or a call's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastslow.engine.checkpoint.identity import check_model
from fastslow.engine.host.files import about, is_file, read_object, shown
from fastslow.engine.model.routed_units import FIELDS, RoutedUnits
from fastslow.engine.params import CHANGED, Mode, Params, nearest
from fastslow.engine.text.switches import EFFORTS
from fastslow.policies.turns import MOST_ROOM

BOUNDS = (  # fields that a preset may hold calls to
    *("thinking", "thinking_budget", "turn_budget", "answer_room", "loop", "confidence"),
    *("latency_ms", "groups", "experts"),
)
NAMING = "name", "base", "description", "auto"  # fields that are a mode's own
MOST_MODES = 1000  # that a file or a call gives
MOST_BASES = 32  # one above the other

DESCRIBED = {  # fast and deep, by whether fast leaves experts out and whether the model thinks
    (True, True): ("answers at once, with some of the experts", "thinks first, with all experts"),
    (True, False): ("quicker: some of the experts", "the whole model: all experts"),
    (False, True): ("answers at once, without a thought", "thinks first, then answers"),
    (False, False): ("the same as deep: this model does not think", "the whole model"),
}

Fields = Mapping[str, Any]


def builtin_modes(units: RoutedUnits, thinks: bool = True) -> dict[str, Mode]:
    """The presets that every checkpoint has. "fast" runs a quarter of the groups, at least one, or half of the experts of
    a model without groups; modes of a dense model differ in thinking only. thinks: whether descriptions speak of
    thoughts."""
    share, least = (2, units.least) if units.name == "experts" else (4, min(units.most, 1))
    count = max(least, units.most // share)
    fewer: dict[str, Any] = {units.name: count} if count < units.most else {}
    fast, deep = DESCRIBED[bool(fewer), thinks]
    return {
        "fast": Mode(name="fast", **fewer, thinking="off", description=fast),
        "deep": Mode(name="deep", thinking="on", answer_room="auto", description=deep),
        "auto": Mode(
            name="auto",
            auto=True,
            description="fast or deep, by what is asked; each answer says which, and why",
        ),
    }


def load_modes(
    folder: Path,
    units: RoutedUnits,
    own: str | Path | Mapping[str, Mode | Fields] | None = None,
    thinks: bool = True,
) -> dict[str, Mode]:
    """Built-in presets, changed and joined by the checkpoint's, and these by the user's.

    A file, the checkpoint's `fastslow.json` or the user's, holds `{"modes": {name: {field: value,
    ...}}}`. A name that is there already is changed: fields not given keep their value. A new one
    begins with its `base`, another preset, or else with the fields' defaults.

    units: what the checkpoint's modes may run fewer of. own: the user's: a JSON file, or name -> `Mode` or its
    fields. thinks: as of `builtin_modes`. ValueError: a file is not JSON, a field is unknown or out of range, a base
    is unknown or goes round in a circle; the user's file was found with another model.
    """
    modes = builtin_modes(units, thinks)
    if is_file(path := folder / "fastslow.json"):
        modes = _read(path, modes, units)
    if isinstance(own, str | Path):
        return _read(Path(own), modes, units, folder)
    try:
        return modes if own is None else _joined(modes, own, units)
    except ValueError as error:
        raise ValueError(f"modes: {error}") from None


def find_mode(mode: str | Mode | Fields, presets: Mapping[str, Mode], units: RoutedUnits) -> Mode:
    """A mode by name, or the caller's own. A preset with changes and without a name has the preset's name and
    a star. ValueError for an unknown name (with the nearest), a field that does not fit, or a number of
    groups or experts that the model does not have."""
    if isinstance(mode, str):
        return _named(mode, presets)
    if not isinstance(mode, Mode | Mapping):
        raise ValueError(f"mode={shown(mode)} must be a name or a Mode, not {type(mode).__name__}")
    given = _given(mode, "mode")
    base = given.get("base")
    if base is None:
        return check_units(mode if isinstance(mode, Mode) else Mode(**given), units)
    preset = _named(base, presets)
    made = check_units(_over(preset, {"name": f"{base}{CHANGED}", **given}), units)
    return bounded(made, preset)


def bounded(mode: Mode, preset: Mode) -> Mode:
    """A mode that a call made of a preset, with the preset's own value of each bound that the call would go beyond."""
    names = mode.bounds if preset.bounds is None else preset.bounds
    names = BOUNDS if "all" in (names or ()) else names
    each = {name: getattr(preset, name) for name in names or ()}
    held = {name: own for name, own in each.items() if _beyond(name, getattr(mode, name), own)}
    if each.get("thinking") == "off" and preset.thinking_budget is None and mode.thinking_budget:
        held["thinking_budget"] = None  # with one, thoughts that the model begins itself would run
    if not held:
        return mode
    made = mode.model_copy(update=held)
    said = (f"{name} stays {shown(own)}, a bound of the mode" for name, own in held.items())
    made._held = (*mode._held, *said)
    return made


def _beyond(field: str, wish: Any, bound: Any) -> bool:
    """True where a call wants more than a preset has."""
    if bound is None or wish == bound:
        return False
    if field == "thinking":
        return bool(bound == "off")
    if field == "answer_room":  # of which less is more; "auto" may be any number up to its most
        least = 1 if wish == "auto" else wish or 0
        return bool(least < (MOST_ROOM if bound == "auto" else bound))
    return field in ("loop", "confidence", "latency_ms") or wish is None or bool(wish > bound)


def in_either(taken: Mode, auto: Mode, usual: Mode) -> Mode:
    """A preset that was chosen for a request, with the fields that the mode `auto` itself gives. usual: the preset that
    a call made this mode of."""
    both = []
    for one in (auto, usual):
        own = {name: value for name, value in fields_of(one).items() if name not in NAMING}
        both.append(_over(taken, {**own, "name": taken.name}) if own else taken)
    return bounded(*both)


def check_units(mode: Mode, units: RoutedUnits) -> Mode:
    """The mode, with "all groups" or "all experts" always written as None."""
    what = f"mode {shown(mode.name)}: "
    count = units.checked(what, mode.groups, mode.experts)
    other = "experts" if units.name == "groups" else "groups"
    if units.most and other in mode.may_shorten:
        raise ValueError(
            f"{what}may_shorten={other!r} must be {units.name!r}: {FIELDS[units.name]}"
        )
    if count == mode.routed:
        return mode
    return mode.model_copy(update={"experts" if mode.groups is None else "groups": None})


def fields_of(mode: Params | Fields) -> dict[str, Any]:
    """The fields that were given, those of nested settings too."""
    if isinstance(mode, Params):
        mode = {name: getattr(mode, name) for name in mode.model_fields_set}
    return {k: fields_of(v) if isinstance(v, Params) else v for k, v in mode.items()}


def _given(mode: Mode | Fields, where: str) -> dict[str, Any]:
    """`fields_of`, whose names must be texts."""
    if isinstance(mode, Mapping) and not all(isinstance(name, str) for name in mode):
        raise ValueError(f"{where}={shown(dict(mode))} must have names of fields as its keys")
    given = fields_of(mode)
    bounds = given.get("bounds")
    for name in bounds if isinstance(bounds, list | tuple) else ():
        if name not in (*BOUNDS, "all"):
            raise ValueError(f"{where}.bounds: {shown(name)} is none{nearest(str(name), BOUNDS)}")
    return _in_full(given)


def _in_full(fields: dict[str, Any]) -> dict[str, Any]:
    """These fields, and those that an effort stands for where none is given."""
    meant = EFFORTS.get(str(effort := fields.get("effort")))
    if meant is None:
        return fields
    if fields.get("base") not in (None, meant["base"]):
        raise ValueError(
            f"base={shown(fields['base'])} and effort={effort!r}, which is mode {meant['base']!r}, contradict each "
            "other: give one of them"
        )
    if fields.get("thinking") == "off":
        meant = {**meant, "thinking_budget": None}
    return {**meant, **fields, "base": meant["base"]}


def _named(name: Any, presets: Mapping[str, Mode]) -> Mode:
    if not isinstance(name, str):
        raise ValueError(f"base={shown(name)} must be a preset's name")
    if name not in presets:
        raise ValueError(f"mode={shown(name)} is unknown{nearest(name, presets)}")
    return presets[name]


def _over(base: Mode, fields: Fields) -> Mode:
    """A mode with these fields, and the base's where none is given."""
    below = fields_of(base)
    for name, other in (("groups", "experts"), ("experts", "groups")):
        if fields.get(name) is not None:
            below.pop(other, None)
    if fields["name"] != base.name:
        below.pop("description", None)  # it describes the base
    both = {**below, **fields, "base": None}
    for name, above in fields.items():
        if isinstance(above, Mapping) and isinstance(below.get(name), Mapping):
            both[name] = {**below[name], **above}
    most = both.get("thinking_budget")
    if "thinking_soft" in below and "thinking_soft" not in fields and isinstance(most, int | None):
        both["thinking_soft"] = max(0, min(below["thinking_soft"], most or 0))
    return Mode(**both)


def _read(
    path: Path, modes: Mapping[str, Mode], units: RoutedUnits, folder: Path | None = None
) -> dict[str, Mode]:
    """`folder`: of the model that the presets must be for."""
    if not is_file(path):
        raise ValueError(f"presets in {path} cannot be read: there is no such file")
    with about(f"presets in {path} cannot be read"):
        record = read_object(path)
        found = _joined(modes, record.get("modes", {}), units)
    check_model(record, folder, f"presets file {str(path)!r}")
    return found


def _joined(modes: Mapping[str, Mode], layer: Any, units: RoutedUnits) -> dict[str, Mode]:
    """The presets with those of a layer on top."""
    if not isinstance(layer, Mapping):
        raise ValueError(f"modes={shown(layer)} must be a valid dictionary")
    if len(layer) > MOST_MODES:
        raise ValueError(f"modes has {len(layer)} presets, and {MOST_MODES} are the most")
    given: dict[str, Fields] = {}
    for name, fields in layer.items():
        if not isinstance(name, str):
            raise ValueError(f"modes has {shown(name)}, which must be a preset's name")
        if not isinstance(fields, Mode | Mapping):
            raise ValueError(f"modes.{name:.60}={shown(fields)} must be a valid dictionary")
        given[name] = _given(fields, f"modes.{name}")
    made = dict(modes)
    for name in given:
        made[name] = check_units(_made(name, given, modes, ()), units)
    return made


def _made(
    name: str, given: Mapping[str, Fields], below: Mapping[str, Mode], on: tuple[str, ...]
) -> Mode:
    """A preset of a layer; those that it begins with are made first."""
    if name in on:
        raise ValueError(
            f"mode {shown(name)}: base goes round in a circle, {shown(' > '.join((*on, name)))[1:-1]}"
        )
    if len(on) > MOST_BASES:
        raise ValueError(f"mode {shown(on[0])} has more than {MOST_BASES} bases above each other")
    fields = given.get(name)
    if fields is None:
        return _named(name, {**below, **dict.fromkeys(given, Mode())})
    base = fields.get("base")
    if base is not None and not isinstance(base, str):
        raise ValueError(f"modes.{name:.60}.base={shown(base)} must be a preset's name")
    if base is not None and base != name:
        start = _made(base, given, below, (*on, name))
    else:
        start = below.get(name, Mode())
    return _over(start, {**fields, "name": name})
