"""From the name of a drafter to the drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastslow.draft.adaptive import AdaptiveDrafter, DrafterSelection
from fastslow.draft.fallback import FallbackDrafter
from fastslow.draft.head.draft import HeadDraft
from fastslow.draft.head.runner import HeadRunner
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.model.retold import model_draft_across
from fastslow.draft.model.spelling import Spelling
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.suffix.corpus import Corpus
from fastslow.draft.suffix.draft import SuffixDraft
from fastslow.draft.suffix.sources import Earlier
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.params import Speculation, nearest
from fastslow.engine.types import Drafter, MarginalValue, RequestView, TargetProbs

AUTO_WIDTH = 3
NAMES = ("suffix", "ngram", "head", "self", "model")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A draft model, its pages, and both tokenizers where its vocabulary is not the target's."""

    model: Model
    cache: KVCache
    spellings: tuple[Spelling, Spelling] | None = None  # the target's, its own


@dataclass(frozen=True, slots=True)
class DrafterDeps:
    """What drafters are made of.

    Attributes:
        target: the model that verifies.
        cache: the target's KV.
        law: logits -> law under a request's parameters.
        only_best: whether a request's laws are certain and need no logits.
        load_model: the draft model at a path.
        load_head: the trained head at a path, None = the one that belongs to the target: trained for
            it, or in its checkpoint.
        load_corpus: the stored answers at a path.
        earlier: the engine's own answers; None = they are not kept.
        has_head: whether a head belongs to the target.
        selection: who is asked of so many drafters behind these settings' name.
        worth: what tokens and rows are worth in a batch's step; None = unknown.
    """

    target: Model
    cache: KVCache
    law: TargetProbs
    only_best: Callable[[RequestView], bool]
    load_model: Callable[[str], LoadedModel]
    load_head: Callable[[Path | None], HeadRunner]
    load_corpus: Callable[[Path], Corpus]
    earlier: Earlier | None
    has_head: bool
    selection: Callable[[int, Speculation], DrafterSelection]
    worth: Callable[[Sequence[RequestView]], MarginalValue] | None = None


def check_drafter(settings: Speculation, groups: int, has_head: bool = False) -> list[str]:
    """The drafters that `settings.drafter` names, in order; see `build_drafter`.

    Args:
        settings: what a request asked for.
        groups: routed groups of the target, 0 for a dense model.
        has_head: whether a head belongs to the target.

    Raises:
        ValueError: an unknown name (the nearest known one is told), "self" on a dense model without
            `layers` or with more groups than there are, "model" without a path, "head" without a
            head.
    """
    if settings.drafter == "auto":
        return ["suffix", "head"] if has_head or settings.head is not None else ["suffix"]
    names = settings.drafter.replace("|", "+").split("+")
    for name in names:
        if name not in NAMES:
            hint = nearest(name, (*NAMES, "auto", "off"))
            raise ValueError(f"drafter={settings.drafter!r} is unknown{hint}")
    if "+" in settings.drafter and "|" in settings.drafter:
        raise ValueError(f"drafter={settings.drafter!r} must join names by + or by |, not by both")
    if "self" in names and not groups and settings.layers is None:
        raise ValueError(
            "drafter='self' needs a model with routed groups, or layers=(...) to keep; "
            "this one is dense, or its experts are one group"
        )
    if "self" in names and settings.groups > groups:
        raise ValueError(f"speculation groups={settings.groups} is outside 0..{groups}")
    if "model" in names and not settings.model:
        raise ValueError("drafter='model' needs model=PATH, the folder of the draft model")
    if "head" in names and not has_head and settings.head is None:
        raise ValueError(
            "drafter='head' needs head=PATH, a head trained for this model by "
            "`fastslow train-draft`"
        )
    return names


def build_drafter(settings: Speculation, means: DrafterDeps) -> Drafter:
    """Make the drafter that a request asked for.

    "a+b" asks b where a says nothing; "a|b" asks each where it pays, and drafts side by side what
    says how likely it is, else what promises most. "auto" is "suffix|head" where the model has a
    head, whose trees are then AUTO_WIDTH wide, else "suffix".
    How long drafters take is weighed where the length is the engine's to choose.

    Args:
        settings: what a request asked for.
        means: what it is made of; its loaders raise ValueError if something does not fit.
    """
    names = check_drafter(settings, means.target.config.groups, means.has_head)
    made = [_make(name, settings, means) for name in names]
    if len(made) == 1:
        return made[0]
    if "+" in settings.drafter:
        return FallbackDrafter(*made)
    return AdaptiveDrafter(made, means.selection(len(made), settings))


def _make(name: str, settings: Speculation, means: DrafterDeps) -> Drafter:
    if name == "ngram":
        return NgramDraft()
    if name == "suffix":
        corpus = None if settings.corpus is None else means.load_corpus(Path(settings.corpus))
        return SuffixDraft(corpus, means.earlier)
    if name == "head":
        path = None if settings.head is None else Path(settings.head)
        runner = means.load_head(path)
        width = AUTO_WIDTH if settings.drafter == "auto" else settings.width
        return HeadDraft(runner, means.law, width, only_best=means.only_best, worth=means.worth)
    if name == "self":
        model = (
            means.target if settings.layers is None else means.target.layer_subset(settings.layers)
        )
        groups = settings.groups if means.target.config.groups else None
        kv = BorrowedKV(means.cache)
        return ModelDraft(model, kv, means.law, groups, settings.width, only_best=means.only_best)
    loaded = means.load_model(str(settings.model))
    own = OwnKV(loaded.cache)
    if loaded.spellings is None:
        return ModelDraft(
            loaded.model, own, means.law, width=settings.width, only_best=means.only_best
        )
    columns = means.target.config.vocab_size
    return model_draft_across(
        loaded.model, own, means.law, *loaded.spellings, columns, settings.width
    )
