"""Drafters for an engine: made when a request first asks for one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from loguru import logger

from fastslow.draft.build import DrafterDeps, LoadedModel, build_drafter, check_drafter
from fastslow.draft.head.head import load_mtp
from fastslow.draft.head.runner import HeadRunner, TorchRunner, load_head, made_for
from fastslow.draft.suffix.corpus import Corpus
from fastslow.draft.suffix.sources import EarlierAnswers
from fastslow.engine.backends.loader import load_model
from fastslow.engine.host.files import is_file
from fastslow.engine.host.machine import give_back
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.model.families.pangu_v2 import has_mtp_layer
from fastslow.engine.params import Speculation
from fastslow.engine.text.tokenizer import same_vocabulary
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.types import Drafter
from fastslow.models.locate import find_tokenizer, resolve_model
from fastslow.policies.speculation.controller import SpeculationController

HEAD = "draft_head.safetensors"  # in the checkpoint's folder
SHIPPED = Path(str(files("fastslow.draft.head"))) / "shipped"


class DrafterFactory:
    """Speculation settings -> drafter, for one target.

    Args:
        folder: the target's checkpoint.
        target: the model that verifies.
        kv: the target's pages.
        tokenizer: the target's, if it has one.
        options: dtype, quantization, device and progress of draft models.
        pages_for: pages for a draft model with a context no longer than the target's.
        remember: whether answers are kept to draft later ones.
        controller: values tokens and rows, and selects among several drafters.

    Attributes:
        made: the drafters so far; it grows while the engine runs.
        folder: the target's checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        target: Model,
        kv: KVCache,
        tokenizer: Tokenizer | None,
        options: dict[str, Any],
        pages_for: Callable[[Model], KVCache],
        remember: bool,
        controller: SpeculationController,
    ) -> None:
        self.made: dict[Speculation, Drafter] = {}
        self._keys: dict[Speculation, Speculation] = {}
        self.folder = folder
        self._tokenizer = tokenizer
        self._options = options
        self._pages_for = pages_for
        self._building = threading.Lock()
        self._models = cache(self._load_model)  # loaded once for all drafters
        self._own_head = own_head(folder)
        self._has_mtp = has_mtp_layer(folder)
        self._deps = DrafterDeps(
            target=target,
            cache=kv,
            load_model=self._loaded,
            load_head=cache(self._load_head),
            load_corpus=cache(self._load_corpus),
            earlier=EarlierAnswers() if remember else None,
            has_head=self.has_head,
            selection=controller.selection,
            marginal_value=controller.value,
        )

    @property
    def has_head(self) -> bool:
        """Whether a head belongs to the target: trained for it, or in its checkpoint."""
        return self._own_head is not None or self._has_mtp

    def make(self, settings: Speculation) -> Speculation:
        """The settings without the fields that need no other drafter; makes the drafter on first use.

        Raises:
            ValueError: one sentence about what does not fit.
        """
        # it matters whether the length is fixed, not how long it is
        nodes = None if settings.nodes is None else 0
        usual = {"nodes": nodes, "accept": "auto", "step_score": Speculation().step_score}
        key = settings.model_copy(update=usual)
        # always the same object: dictionaries then need not compare all fields in every step
        key = self._keys.setdefault(key, key)
        if settings.drafter == "off":
            return key
        check_drafter(settings, self._deps.target.config.groups, self._deps.has_head)
        with self._building:
            if key not in self.made:
                self.made[key] = build_drafter(key, self._deps)
        return key

    def clear(self) -> None:
        """Let go of all drafters and their models."""
        self.made.clear()
        self.__dict__.pop("_deps", None)
        self.__dict__.pop("_models", None)

    def _loaded(self, path: str) -> LoadedModel:
        """A draft model with pages of its own for each drafter that uses it."""
        model, tokenizers = self._models(path)
        return LoadedModel(model, self._pages_for(model), tokenizers)

    def _load_model(self, path: str) -> tuple[Model, tuple[Tokenizer, Tokenizer] | None]:
        folder = resolve_model(path)
        theirs = find_tokenizer(folder)
        tokenizers = None
        if self._tokenizer is not None and theirs is not None:
            differs = same_vocabulary(self._tokenizer, theirs)
            if differs:
                logger.info("draft model {} has tokens of its own: {}", path, differs)
                tokenizers = (self._tokenizer, theirs)
        model = load_model(folder, **self._options)
        ours = self._deps.target.config.vocab_size
        for one, size in zip(tokenizers or (), (ours, model.config.vocab_size)):
            if one.vocab_size > size:
                raise ValueError(
                    f"draft model {path!r} cannot draft for this target: token ids reach to "
                    f"{one.vocab_size - 1}, and a vocab_size is {size}"
                )
        if tokenizers is None and model.config.vocab_size != ours:
            raise ValueError(
                f"draft model {path!r} cannot draft for this target: its vocab_size is "
                f"{model.config.vocab_size}, the target's {ours}"
            )
        return model, tokenizers

    def _load_head(self, path: Path | None) -> HeadRunner:
        if path is None and self._own_head is None and self._has_mtp:
            return TorchRunner(load_mtp(self.folder, self._deps.target.dtype))
        head = load_head(path or self._own_head or Path(HEAD), self.folder)
        give_back()  # matrices were in float32 before they were packed
        return head

    def _load_corpus(self, path: Path) -> Corpus:
        if self._tokenizer is None:
            raise ValueError(f"corpus {path} needs a model with a tokenizer")
        corpus = Corpus(path, self._tokenizer.vocab())
        if corpus.largest >= (size := self._deps.target.config.vocab_size):
            raise ValueError(
                f"{path} holds token id {corpus.largest}, outside the model's vocab_size of {size}"
            )
        return corpus


def own_head(folder: Path) -> Path | None:
    """The head that belongs to a checkpoint: in its folder, or shipped for a model with these weights,
    whatever its folder is called."""
    if is_file(own := folder / HEAD):
        return own
    return made_for(folder, SHIPPED.glob("*.safetensors"))
