"""Drafters for an engine: made when a request first asks for one, freed when they are not used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from loguru import logger

from fastslow.draft.head.runner import HeadRunner, load_head, made_for
from fastslow.draft.registry import (
    DRAFTERS,
    OWN,
    DrafterDeps,
    LoadedModel,
    build_drafter,
    check_drafter,
    split_names,
)
from fastslow.draft.several import on_each
from fastslow.draft.suffix.corpus import Corpus
from fastslow.draft.suffix.sources import AnswerMemory
from fastslow.engine.backends.assistant import is_assistant, load_assistant
from fastslow.engine.backends.loader import load_model
from fastslow.engine.host.files import is_file
from fastslow.engine.host.machine import give_back
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model, MtpModel
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Speculation, shown
from fastslow.engine.sampling.stop import Stopper
from fastslow.engine.text.tokenizer import same_vocabulary
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.types import Drafter
from fastslow.models.hub.repository import HEAD, OLD_HEAD
from fastslow.models.locate import called, find_tokenizer, resolve_head, resolve_model
from fastslow.policies.speculation.controller import SpeculationController

SHIPPED = Path(str(files("fastslow.draft.head"))) / "shipped"
MOST = 32  # drafters at a time
MOST_MODELS = 4  # of them with a draft model, which have pages of their own
OFF = Speculation(drafter="off")


class Closed:
    """Stands in for the parts of a closed LLM; every access raises RuntimeError."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("this LLM is closed; make a new one")


class DrafterFactory:
    """Speculation settings -> drafter, for one target.

    At most MOST drafters are kept, with all that they have learnt. For a new one the drafter goes that
    was not asked for longest, of those that no request uses. Where all are used, the new request is not
    drafted for. What drafters share (a draft model's weights, a head, a corpus) is loaded once, and is
    freed with the last of them; the head that belongs to the target stays.

    Args:
        options: of `load_model`, for draft models.
        pages_for: pages for a draft model with a context no longer than the target's.
        memory: keeps answers to draft later ones; None: they are not kept.
        controller: values tokens and rows, and selects among several drafters.
    """

    def __init__(
        self,
        folder: Path,
        target: Model,
        kv: KVCache,
        tokenizer: Tokenizer | None,
        options: dict[str, Any],
        pages_for: Callable[[Model], KVCache],
        memory: AnswerMemory | None,
        controller: SpeculationController,
    ) -> None:
        self.made: dict[Speculation, Drafter] = {}  # it changes while the engine runs
        # calls something in the engine's thread, the only one that may call drafters
        self.between_steps: Callable[[Callable[[], None]], None] = lambda action: action()
        self._keys = OrderedDict[Speculation, Speculation]()  # the last used at the end
        self._users: dict[Speculation, WeakValueDictionary[int, Stopper]] = {}  # by requests' ids
        self._controller = controller
        self._told = False
        self.folder = folder
        self._tokenizer = tokenizer
        self._options = options
        self._pages_for = pages_for
        self._building = threading.Lock()
        # loaded once for all drafters that use it
        self._models: WeakValueDictionary[str, Model] = WeakValueDictionary()
        self._tokenizers: WeakKeyDictionary[Model, tuple[Tokenizer, Tokenizer] | None]
        self._tokenizers = WeakKeyDictionary()
        self._heads: WeakValueDictionary[Path | None, HeadRunner | MtpModel] = WeakValueDictionary()
        self._stays: HeadRunner | MtpModel | None = None
        self._corpora: WeakValueDictionary[Path, Corpus] = WeakValueDictionary()
        self._own_head = own_head(folder)
        self._units = RoutedUnits.of(target.config)
        has = {"head": self.has_head, "mtp": target.mtp is not None}
        own = [name for name in OWN if has[name]]
        self._deps = DrafterDeps(
            target=target,
            cache=kv,
            load_model=self._loaded,
            load_head=self._head,
            load_corpus=self._corpus,
            memory=memory,
            own=own,
            selection=controller.selection,
            marginal_value=controller.value,
        )

    @property
    def has_head(self) -> bool:
        """True where the target has a draft head, one trained for it."""
        return self._own_head is not None

    def make(self, settings: Speculation) -> Speculation:
        """Return the key of the drafter for these settings; build the drafter on first use."""
        if settings.drafter == "off":
            return OFF
        names = check_drafter(settings, self._units, self._deps.own)
        # it matters whether the length is fixed, not how long it is
        nodes = None if settings.nodes is None else 0
        usual = {"nodes": nodes, "accept": "auto", "step_score": Speculation().step_score}
        key = settings.model_copy(update=usual)
        with self._building:
            if key in self.made:
                self._keys.move_to_end(key)
                # always the same object: dictionaries then need not compare all fields in every step
                return self._keys[key]
            if not self._make_room(_has_cache(names)):
                return OFF
            drafter = build_drafter(key, self._deps)
            self._keys[key], self._users[key] = key, WeakValueDictionary()
            self.made[key] = drafter
        return key

    def alone(self, settings: Speculation) -> str:
        """The name of the drafter that settings mean; "" where that is none, or several."""
        if settings.drafter == "off":
            return ""
        names = check_drafter(settings, self._units, self._deps.own)
        return names[0] if len(names) == 1 else ""

    def use(self, key: Speculation, id: int, stopper: Stopper) -> None:
        """A request has the drafter with this key, until it is over."""
        with self._building:
            if key in self._users:
                self._users[key][id] = stopper

    def forget(self) -> None:
        """Forget the answers that are kept to draft later ones; for the engine's thread."""
        if self._deps.memory is not None:
            self._deps.memory.clear()

    def clear(self) -> None:
        """Let go of all drafters and their models."""
        self.made.clear()
        self._stays = None
        self._deps = self._controller = cast(Any, Closed())
        self.between_steps = lambda _: None

    def _make_room(self, has_cache: bool) -> bool:
        """Let drafters go until one more fits, with a KV cache beside the target's or without."""
        paged = [k for k in self._keys if _has_cache(split_names(k.drafter))] if has_cache else []
        for among, most in ((paged, MOST_MODELS), (list(self._keys), MOST)):
            while len(among) >= most:
                if (key := next(filter(self._is_free, among), None)) is None:
                    if not self._told:
                        said = "{} drafters are in use: requests with other settings get no drafts"
                        logger.warning(said, len(among))
                    self._told = True
                    return False
                among.remove(key)
                if key in self.made:
                    self._let_go(key)
        return True

    def _is_free(self, key: Speculation) -> bool:
        return all(one.reason is not None for one in self._users.get(key, {}).values())

    def _let_go(self, key: Speculation) -> None:
        drafter, users = self.made.pop(key), list(self._users.pop(key))
        del self._keys[key]
        self._controller.forget(key)
        self._told = False

        def end() -> None:
            try:  # what it shares with other drafters must not keep its texts
                on_each((lambda: drafter.release(users), drafter.forget), lambda act: act())
            except Exception as error:  # noqa: BLE001 - the engine continues without it
                logger.opt(exception=error).warning("a drafter that is not used fails to let go")

        self.between_steps(end)

    def _loaded(self, path: str) -> LoadedModel:
        """A draft model, with pages for each drafter that uses it."""
        model = self._models.get(path)
        if model is None:
            model, tokenizers = self._load_model(path)
            self._models[path], self._tokenizers[model] = model, tokenizers
        try:
            pages = self._pages_for(model)
        except ValueError as error:  # kv_memory holds the target's pages, and not these
            raise ValueError(f"draft model {shown(path)}: {error}") from None
        return LoadedModel(model, pages, self._tokenizers[model])

    def _load_model(self, path: str) -> tuple[Model, tuple[Tokenizer, Tokenizer] | None]:
        folder = resolve_model(path, self._options.get("progress", True))
        with called(path, folder):
            theirs = find_tokenizer(folder)
            model = load_model(folder, **self._options)
        both = None
        if self._tokenizer is not None and theirs is not None:
            both = self._tokenizer, theirs
        differs = None if both is None else same_vocabulary(*both)
        if differs:
            logger.info("draft model {} has other tokens: {}", path, differs)
        ours = self._deps.target.config.vocab_size
        padded = model.config.vocab_size != ours  # alone, where the tokenizers do not differ
        for one, size in zip(both or (), (ours, model.config.vocab_size)):
            if (differs or padded) and one.vocab_size > size:
                raise ValueError(
                    f"draft model {path!r} cannot draft for this target: token ids reach to "
                    f"{one.vocab_size - 1}, and a vocab_size is {size}"
                )
        if padded and both is None:
            raise ValueError(
                f"draft model {path!r} cannot draft for this target: its vocab_size is "
                f"{model.config.vocab_size}, the target's {ours}"
            )
        return model, both if differs else None

    def _head(self, path: Path | None) -> HeadRunner | MtpModel:
        if (head := self._heads.get(path)) is not None:
            return head
        found = self._own_head or Path(HEAD) if path is None else resolve_head(path)
        with called(path or found, found):
            if is_assistant(found):
                head = load_assistant(found, self._deps.target)
            else:
                head = load_head(found, self.folder)
        give_back()  # matrices were in float32 before they were packed
        self._heads[path] = head
        if path is None:
            self._stays = head
        return head

    def _corpus(self, path: Path) -> Corpus:
        if (known := self._corpora.get(path)) is not None:
            return known
        if self._tokenizer is None:
            raise ValueError(f"corpus {path} needs a model with a tokenizer")
        corpus = Corpus(path, self._tokenizer.vocab())
        if corpus.largest >= (size := self._deps.target.config.vocab_size):
            raise ValueError(
                f"{path} holds token id {corpus.largest}, outside the model's vocab_size of {size}"
            )
        self._corpora[path] = corpus
        return corpus


def _has_cache(names: Sequence[str]) -> bool:
    return any(name in DRAFTERS and DRAFTERS[name].own_cache for name in names)


def own_head(folder: Path) -> Path | None:
    """The head that belongs to a checkpoint: in its folder, or shipped for a model with these weights,
    whatever its folder is called."""
    for own in (folder / HEAD, folder / OLD_HEAD):
        if is_file(own):
            return own
    return made_for(folder, SHIPPED.glob("*.safetensors"))
