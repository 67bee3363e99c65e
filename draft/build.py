"""From the name of a drafter to the drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastslow.draft.adaptive import AdaptiveDrafter, DrafterSelection
from fastslow.draft.head.draft import HeadDraft
from fastslow.draft.head.runner import HeadRunner
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.model.retokenized import model_draft_across
from fastslow.draft.model.vocab import PaddedTokens
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.several import FallbackDrafter
from fastslow.draft.suffix.corpus import Corpus
from fastslow.draft.suffix.draft import SuffixDraft
from fastslow.draft.suffix.sources import AnswerMemory
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Speculation, nearest
from fastslow.engine.sampling.probs import only_best, probs_at
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.types import Drafter, MarginalValue, RequestView

AUTO_WIDTH = 3


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A draft model, its pages, and both tokenizers where its vocabulary is not the target's."""

    model: Model
    cache: KVCache
    tokenizers: tuple[Tokenizer, Tokenizer] | None = None  # the target's, its own


@dataclass(frozen=True, slots=True)
class DrafterDeps:
    """The parts of an engine that drafters are made of.

    Attributes:
        target: the model that verifies.
        cache: the target's KV.
        load_model: the draft model at a path.
        load_head: the trained head at a path; None = the one that belongs to the target: trained for
            it, or in its checkpoint.
        load_corpus: the stored answers at a path.
        memory: the engine's own answers; None = they are not stored.
        has_head: whether a head belongs to the target.
        selection: (number of drafters, settings) -> what decides which of them are asked.
        marginal_value: of a token and of a row in a batch's step; None = unknown.
    """

    target: Model
    cache: KVCache
    load_model: Callable[[str], LoadedModel]
    load_head: Callable[[Path | None], HeadRunner]
    load_corpus: Callable[[Path], Corpus]
    memory: AnswerMemory | None
    has_head: bool
    selection: Callable[[int, Speculation], DrafterSelection]
    marginal_value: Callable[[Sequence[RequestView]], MarginalValue] | None = None


def check_drafter(settings: Speculation, units: RoutedUnits, has_head: bool = False) -> list[str]:
    """The drafters that `settings.drafter` names, in order; see `build_drafter`.

    Args:
        settings: what a request asked for.
        units: what the target may run fewer of.
        has_head: whether a head belongs to the target.

    Raises:
        ValueError: an unknown name (the message gives the nearest known one), "self" on a dense model
            without `layers` or with too many groups or experts, "model" without a path, "head" without
            a head.
    """
    if settings.drafter == "auto":
        return ["suffix", "head"] if has_head or settings.head is not None else ["suffix"]
    names = settings.drafter.replace("|", "+").split("+")
    for name in names:
        if name not in DRAFTERS:
            hint = nearest(name, (*DRAFTERS, "auto", "off"))
            raise ValueError(f"drafter={settings.drafter!r} is unknown{hint}")
    if "+" in settings.drafter and "|" in settings.drafter:
        raise ValueError(f"drafter={settings.drafter!r} must join names by + or by |, not by both")
    if "self" in names and not units.most and settings.layers is None:
        raise ValueError(
            "drafter='self' needs a model with routed groups or experts, or layers=(...) to keep; "
            "this one is dense"
        )
    if "self" in names:
        units.checked("speculation ", settings.groups or None, settings.experts)
    if "model" in names and not settings.model:
        raise ValueError(
            "drafter='model' needs model=PATH, a folder or GGUF file, or a built-in name"
        )
    if "head" in names and not has_head and settings.head is None:
        raise ValueError(
            "drafter='head' needs head=PATH, a head trained for this model by "
            "`fastslow train-draft`, or the folder of a published EAGLE-3 head"
        )
    return names


def build_drafter(settings: Speculation, deps: DrafterDeps) -> Drafter:
    """Make the drafter that a request asked for.

    "a+b" asks b where a has no draft; "a|b" asks each where it pays, and merges their trees where
    both have scores, else takes the more promising one. "auto" is "suffix|head" where the model has a
    head, whose trees are then AUTO_WIDTH wide, else "suffix". The time of drafters counts where the
    engine chooses the length.

    Args:
        settings: what a request asked for.
        deps: the engine's parts; its loaders raise ValueError if something does not fit.
    """
    names = check_drafter(settings, RoutedUnits.of(deps.target.config), deps.has_head)
    made = [DRAFTERS[name](settings, deps) for name in names]
    if len(made) == 1:
        return made[0]
    if "+" in settings.drafter:
        return FallbackDrafter(*made, names=names)
    return AdaptiveDrafter(made, deps.selection(len(made), settings), names=names)


def _suffix(settings: Speculation, deps: DrafterDeps) -> Drafter:
    corpus = None if settings.corpus is None else deps.load_corpus(Path(settings.corpus))
    return SuffixDraft(corpus, deps.memory)


def _head(settings: Speculation, deps: DrafterDeps) -> Drafter:
    runner = deps.load_head(None if settings.head is None else Path(settings.head))
    width = AUTO_WIDTH if settings.drafter == "auto" else settings.width
    value = deps.marginal_value
    return HeadDraft(runner, probs_at, width, only_best=only_best, marginal_value=value)


def _self(settings: Speculation, deps: DrafterDeps) -> Drafter:
    target, width = deps.target, settings.width
    model = target if settings.layers is None else target.layer_subset(settings.layers)
    kv = BorrowedKV(deps.cache)
    routed = _routed(settings, RoutedUnits.of(target.config))
    return ModelDraft(model, kv, probs_at, routed, width, only_best=only_best)


def _routed(settings: Speculation, units: RoutedUnits) -> int | None:
    """Groups or experts that run where the target drafts for itself; None for a dense one."""
    if not units.most:
        return None
    if units.name == "groups":
        return settings.groups
    return units.drafted if settings.experts is None else settings.experts


def _model(settings: Speculation, deps: DrafterDeps) -> Drafter:
    loaded, width = deps.load_model(str(settings.model)), settings.width
    kv = OwnKV(loaded.cache)
    own, columns = (model.config.vocab_size for model in (loaded.model, deps.target))
    if loaded.tokenizers is None:
        padded = None if own == columns else PaddedTokens(own, columns)
        return ModelDraft(
            loaded.model, kv, probs_at, width=width, vocab_map=padded, only_best=only_best
        )
    return model_draft_across(loaded.model, kv, probs_at, *loaded.tokenizers, columns, width)


DRAFTERS: dict[str, Callable[[Speculation, DrafterDeps], Drafter]] = {
    "suffix": _suffix,
    "ngram": lambda settings, deps: NgramDraft(),
    "head": _head,
    "self": _self,
    "model": _model,
}
"""Drafters by name. A name in this table can be asked for, alone or joined by + or |."""
