"""From the name of a drafter to the drafter."""

from __future__ import annotations

from fastslow.draft.registry import AUTO, AUTO_WITH_HEAD, DRAFTERS, DrafterDeps, split_names
from fastslow.draft.several import AdaptiveDrafter, FallbackDrafter
from fastslow.engine.model.config import RoutedUnits
from fastslow.engine.params import Speculation, nearest
from fastslow.engine.types import Drafter


def check_drafter(settings: Speculation, units: RoutedUnits, has_head: bool = False) -> list[str]:
    """The drafters that `settings.drafter` names, in order; see `build_drafter`.

    Args:
        settings: what a request asked for.
        units: what the target may run fewer of.
        has_head: whether the target has a head.

    Raises:
        ValueError: an unknown name (the message gives the nearest known one), or settings that a drafter's
            `DrafterKind.check` refuses.
    """
    if settings.drafter == "auto":
        with_head = has_head or settings.head is not None
        return split_names(AUTO_WITH_HEAD if with_head else AUTO)
    names = split_names(settings.drafter)
    for name in names:
        if name not in DRAFTERS:
            hint = nearest(name, (*DRAFTERS, "auto", "off"))
            raise ValueError(f"drafter={settings.drafter!r} is unknown{hint}")
    if "+" in settings.drafter and "|" in settings.drafter:
        raise ValueError(f"drafter={settings.drafter!r} must join names by + or by |, not by both")
    for check in (DRAFTERS[name].check for name in names):
        if check is not None:
            check(settings, units, has_head)
    return names


def build_drafter(settings: Speculation, deps: DrafterDeps) -> Drafter:
    """Make the drafter that a request asked for.

    "a+b" asks b where a has no draft; "a|b" asks each where it pays, and merges their trees where
    both have scores, else takes the more promising one. "auto" is AUTO_WITH_HEAD where the model has a
    head, whose trees are then AUTO_WIDTH wide, else AUTO. The time of drafters counts where the
    engine chooses the length.

    Args:
        settings: what a request asked for.
        deps: the engine's parts; its loaders raise ValueError if something does not fit.
    """
    names = check_drafter(settings, RoutedUnits.of(deps.target.config), deps.has_head)
    made = [DRAFTERS[name].make(settings, deps) for name in names]
    if len(made) == 1:
        return made[0]
    if "+" in settings.drafter:
        return FallbackDrafter(*made, names=names)
    return AdaptiveDrafter(made, deps.selection(len(made), settings), names=names)
