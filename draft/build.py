"""From the name of a drafter to the drafter."""

from __future__ import annotations

from collections.abc import Callable

from fastslow.draft.first import First
from fastslow.draft.model import BorrowedKV, ModelDraft, OwnKV
from fastslow.draft.ngram import NgramDraft
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.params import Speculation, nearest
from fastslow.engine.types import Drafter, Law

NAMES = ("ngram", "self", "model")


def check_drafter(settings: Speculation, groups: int) -> list[str]:
    """The drafters that `settings.drafter` names, in order; "a+b" asks b where a says nothing.

    Args:
        settings: what a request asked for.
        groups: routed groups of the target, 0 for a dense model.

    Raises:
        ValueError: an unknown name (the nearest known one is told), "self" on a dense model or with
            more groups than there are, "model" without a path.
    """
    names = settings.drafter.split("+")
    for name in names:
        if name not in NAMES:
            hint = nearest(name, (*NAMES, "off"))
            raise ValueError(f"drafter={settings.drafter!r} is unknown{hint}")
    if "self" in names and not groups:
        raise ValueError("drafter='self' needs a model with routed groups; this one is dense")
    if "self" in names and settings.groups > groups:
        raise ValueError(f"speculation groups={settings.groups} is outside 0..{groups}")
    if "model" in names and not settings.model:
        raise ValueError("drafter='model' needs model=PATH, the folder of the draft model")
    return names


def build_drafter(
    settings: Speculation,
    target: Model,
    cache: KVCache,
    law: Law,
    load: Callable[[str], tuple[Model, KVCache]],
) -> Drafter:
    """Make the drafter that a request asked for.

    Args:
        settings: checked by `check_drafter`.
        target: the model that verifies.
        cache: the target's KV.
        law: logits -> law under a request's parameters.
        load: gives the draft model at a path and a cache for it; raises ValueError if it does not
            fit the target.
    """
    made: list[Drafter] = []
    for name in check_drafter(settings, target.config.groups):
        if name == "ngram":
            made.append(NgramDraft())
        elif name == "self":
            made.append(ModelDraft(target, BorrowedKV(cache), law, settings.groups))
        else:
            model, own = load(str(settings.model))
            made.append(ModelDraft(model, OwnKV(own), law))
    return made[0] if len(made) == 1 else First(*made)
