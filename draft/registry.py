"""The drafters that can be asked for by name. A new drafter is an entry of `DRAFTERS`; those of installed packages
join it when they are first asked for.

The command line and the server read the names, so nothing heavy is imported before a drafter is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from fastslow.draft.installed import find_entries, load

if TYPE_CHECKING:
    from fastslow.draft.head.runner import HeadRunner
    from fastslow.draft.several import DrafterSelection
    from fastslow.draft.suffix.corpus import Corpus
    from fastslow.draft.suffix.sources import AnswerMemory
    from fastslow.engine.kv.cache import KVCache
    from fastslow.engine.model.base import Model, MtpModel
    from fastslow.engine.model.routed_units import RoutedUnits
    from fastslow.engine.params import Speculation
    from fastslow.engine.text.vocabulary import Tokenizer
    from fastslow.engine.types import Drafter, MarginalValue, RequestView

AUTO = "suffix"  # what "auto" means, alone or beside the first of these that the model has
OWN = "head", "mtp"  # drafters that may belong to a model
AUTO_WIDTH = 3  # of the head's trees in "auto"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A draft model, its pages, and both tokenizers where its vocabulary is not the target's."""

    model: Model
    cache: KVCache
    tokenizers: tuple[Tokenizer, Tokenizer] | None = None  # the target's, the draft model's


@dataclass(frozen=True, slots=True)
class DrafterDeps:
    """The parts of an engine that drafters are made of."""

    target: Model  # verifies
    cache: KVCache  # the target's
    load_model: Callable[[str], LoadedModel]  # the draft model at a path
    load_head: Callable[[Path | None], HeadRunner | MtpModel]  # at a path; None: the target's own
    load_corpus: Callable[[Path], Corpus]
    memory: AnswerMemory | None  # earlier answers; None: they are not stored
    own: Collection[str]  # those of `OWN` that the target has
    selection: Callable[[int, Speculation], DrafterSelection]  # for a number of drafters
    marginal_value: Callable[[Sequence[RequestView]], MarginalValue] | None = None


@dataclass(frozen=True, slots=True)
class DrafterKind:
    """A drafter as the registry knows it.

    Attributes:
        make: makes it from a request's settings and the parts of the engine.
        help: where its drafts come from, in one line: for the README, the server's fields, errors.
        likely_cause: why hardly any of its drafts is accepted, for the log; it follows "Probably".
        check: (settings, what the target may run fewer of, those of `OWN` that it has); raises ValueError with
            one sentence about settings that do not fit. None: all settings fit.
        own_cache: it has KV pages beside the target's, so an engine keeps few of them.
    """

    make: Callable[[Speculation, DrafterDeps], Drafter]
    help: str
    likely_cause: str
    check: Callable[[Speculation, RoutedUnits, Collection[str]], None] | None = None
    own_cache: bool = False


def split_names(drafter: str) -> list[str]:
    """The names in "a", "a+b" or "a|b"."""
    return drafter.replace("|", "+").split("+")


def _suffix(settings: Speculation, deps: DrafterDeps) -> Drafter:
    from fastslow.draft.suffix.draft import SuffixDraft

    corpus = None if settings.corpus is None else deps.load_corpus(Path(settings.corpus))
    return SuffixDraft(corpus, deps.memory)


def _ngram(settings: Speculation, deps: DrafterDeps) -> Drafter:
    from fastslow.draft.ngram import NgramDraft

    return NgramDraft()


def _head(settings: Speculation, deps: DrafterDeps) -> Drafter:
    from fastslow.draft.head.draft import HeadDraft
    from fastslow.draft.head.growing import Growth
    from fastslow.draft.mtp.assistant import AssistantDraft
    from fastslow.engine.model.base import MtpModel

    runner = deps.load_head(None if settings.head is None else Path(settings.head))
    width = AUTO_WIDTH if settings.drafter == "auto" else settings.width
    growth = Growth(width, deps.marginal_value)
    if isinstance(runner, MtpModel):
        return AssistantDraft(runner, deps.target, deps.cache, growth)
    return HeadDraft(runner, growth)


def _check_head(settings: Speculation, units: RoutedUnits, own: Collection[str]) -> None:
    if "head" not in own and settings.head is None:
        raise ValueError(
            "drafter='head' needs head=PATH, a head trained for this model by "
            "`fastslow train-draft`, or the folder or hub name of a published EAGLE-3 head or "
            "Gemma 4 assistant"
        )


def _mtp(settings: Speculation, deps: DrafterDeps) -> Drafter:
    from fastslow.draft.head.growing import Growth
    from fastslow.draft.mtp.draft import MtpDraft

    width = 1 if settings.drafter == "auto" else settings.width
    return MtpDraft(deps.target, deps.cache, Growth(width, deps.marginal_value))


def _check_mtp(settings: Speculation, units: RoutedUnits, own: Collection[str]) -> None:
    if "mtp" not in own:
        raise ValueError("drafter='mtp' needs a model with a layer for multi-token prediction")


def _self(settings: Speculation, deps: DrafterDeps) -> Drafter:
    from fastslow.draft.model.draft import ModelDraft
    from fastslow.draft.model.kv import BorrowedKV
    from fastslow.engine.model.routed_units import RoutedUnits

    target, units = deps.target, RoutedUnits.of(deps.target.config)
    model = target if settings.layers is None else target.layer_subset(settings.layers)
    routed = None  # of a dense target
    if units.most and units.name == "groups":
        routed = settings.groups
    elif units.most:
        routed = units.drafted if settings.experts is None else settings.experts
    return ModelDraft(model, BorrowedKV(deps.cache), routed)


def _check_self(settings: Speculation, units: RoutedUnits, own: Collection[str]) -> None:
    if not units.most and settings.layers is None:
        raise ValueError(
            "drafter='self' needs a model with routed groups or experts, or layers=(...) to keep; "
            "this one is dense"
        )
    units.checked("speculation ", settings.groups or None, settings.experts)


def _model(settings: Speculation, deps: DrafterDeps) -> Drafter:
    from fastslow.draft.model.draft import ModelDraft
    from fastslow.draft.model.kv import OwnKV
    from fastslow.draft.model.vocab import PaddedTokens, SharedTokens, VocabMap

    loaded = deps.load_model(str(settings.model))
    size, columns = loaded.model.config.vocab_size, deps.target.config.vocab_size
    vocab_map: VocabMap | None = None
    if loaded.tokenizers is not None:
        vocab_map = SharedTokens(*loaded.tokenizers, columns)
    elif size != columns:
        vocab_map = PaddedTokens(size, columns)
    return ModelDraft(loaded.model, OwnKV(loaded.cache), vocab_map=vocab_map)


def _check_model(settings: Speculation, units: RoutedUnits, own: Collection[str]) -> None:
    if not settings.model:
        raise ValueError(
            "drafter='model' needs model=PATH, a folder or GGUF file, a built-in name or a hub's"
        )


DRAFTERS: dict[str, DrafterKind] = {
    "suffix": DrafterKind(
        _suffix,
        help="the longest match: in this text, in earlier answers, in a stored corpus",
        likely_cause="the answers repeat little that was said before",
    ),
    "ngram": DrafterKind(
        _ngram,
        help="the same last tokens, earlier in this text",
        likely_cause="the answers repeat little of their texts",
    ),
    "head": DrafterKind(
        _head,
        help="a small trained layer on the target's hidden states",
        likely_cause="the head was trained for another model, or on other texts and modes",
        check=_check_head,
    ),
    "mtp": DrafterKind(
        _mtp,
        help="the model's own layer for multi-token prediction",
        likely_cause="the layer was trained on other texts",
        check=_check_mtp,
    ),
    "self": DrafterKind(
        _self,
        help="the target with fewer groups, experts or layers",
        likely_cause="the experts or layers it keeps say other things than the whole model",
        check=_check_self,
    ),
    "model": DrafterKind(
        _model,
        help="a small model with any vocabulary",
        likely_cause="the draft model says other things, as when it follows another chat template",
        check=_check_model,
        own_cache=True,
    ),
}
"""Drafters by name. A name in this table can be asked for, alone or joined by + or |."""
TAKEN = frozenset((*DRAFTERS, "auto", "off"))  # no package may bring a drafter with such a name


@cache
def _installed() -> dict[str, EntryPoint]:
    return find_entries(TAKEN)


def drafter_names() -> list[str]:
    """The names in `DRAFTERS` and those of drafters of installed packages."""
    return list(dict.fromkeys((*DRAFTERS, *_installed())))


def find_drafter(name: str) -> DrafterKind | None:
    """The drafter with this name; one of an installed package joins `DRAFTERS`. ValueError: it does not load."""
    if name not in DRAFTERS and name in _installed():
        found = load(_installed()[name], DrafterKind)
        if isinstance(found, str):
            raise ValueError(found)
        DRAFTERS[name] = found
    return DRAFTERS.get(name)


def check_drafter(
    settings: Speculation, units: RoutedUnits, own: Collection[str] = ()
) -> list[str]:
    """The drafters that `settings.drafter` names, in order; see `build_drafter`. own: those of `OWN` that the target
    has. ValueError for an unknown
    name, with the nearest known name, or for settings that a drafter's `DrafterKind.check` refuses."""
    from fastslow.engine.params import nearest

    if settings.drafter == "auto":
        known = {"head", *own} if settings.head is not None else own
        return [AUTO, *[name for name in OWN if name in known][:1]]
    names = split_names(settings.drafter)
    for name in names:
        if find_drafter(name) is None:
            hint = nearest(name, (*drafter_names(), "auto", "off"))
            raise ValueError(f"drafter={settings.drafter!r} is unknown{hint}")
    if "+" in settings.drafter and "|" in settings.drafter:
        raise ValueError(f"drafter={settings.drafter!r} must join names by + or by |, not by both")
    for check in (DRAFTERS[name].check for name in names):
        if check is not None:
            check(settings, units, own)
    return names


def build_drafter(settings: Speculation, deps: DrafterDeps) -> Drafter:
    """Make the drafter that a request asked for; the loaders of `deps` raise ValueError if something does
    not fit.

    "a+b" asks b where a has no draft; "a|b" asks each where it pays, and merges their trees where
    both have scores, else takes the more promising one. "auto" is AUTO, and where the model has one of OWN, AUTO | the
    first of them; a head's trees are then AUTO_WIDTH wide.
    """
    from fastslow.draft.several import AdaptiveDrafter, FallbackDrafter
    from fastslow.engine.model.routed_units import RoutedUnits

    names = check_drafter(settings, RoutedUnits.of(deps.target.config), deps.own)
    made = [DRAFTERS[name].make(settings, deps) for name in names]
    if len(made) == 1:
        return made[0]
    if "+" in settings.drafter:
        return FallbackDrafter(*made, names=names)
    return AdaptiveDrafter(made, deps.selection(len(made), settings), names=names)
