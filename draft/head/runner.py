"""Runners of a draft head: they number texts, take rows and grow trees."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from loguru import logger
from torch import Tensor

from fastslow.draft.head.config import (
    Ends,
    HeadConfig,
    StoredEnds,
    fingerprint,
    read_ends,
    read_head,
    read_metadata,
    stored_ends,
)
from fastslow.draft.head.eagle import embedding_of, read_eagle
from fastslow.draft.head.head import DraftHead, EagleHead, TrainedHead
from fastslow.draft.head.layer import HeadKV
from fastslow.draft.head.state import DraftVocab, RequestVocab
from fastslow.draft.head.tree import GrowingTree, grow_trees
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.draft_head import DraftKernels, NewRows, PairedEntry, TreeLimits
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.types import Floats, Ints, Tree


class HeadRunner(Protocol):
    """Runs a head for many texts, which it numbers. A text's *chain* begins at its last row, and the caller
    chooses its tokens; `grow` begins it anew. `vocab_size` is V, of the target."""

    config: HeadConfig
    vocab_size: int

    def open(self, position: int) -> int:
        """Begin a text whose first row has this position; gives its number."""

    def fork(self, text: int, drop: int) -> int:
        """Copy a text without its last `drop` rows, which have no gap; gives the copy's number. The copy
        has no own tokens, and no tree or chain until `grow` adds a row."""

    def close(self, text: int) -> None:
        """The text is over."""

    def skip(self, text: int, position: int) -> None:
        """The text's next row has this position; the rows between are missing."""

    def read(self, rows: NewRows) -> None:
        """Add rows that nothing is drafted from, in less time than `grow`. A text has no tree and no
        chain then until `grow` adds a row after them."""

    def add_tokens(self, text: int, tokens: Sequence[int]) -> None:
        """These tokens can be drafted for a text from now on."""

    def vocab_ids(self, text: int) -> Ints:
        """[D + E] token ids in the order of the logits: shared tokens, then the text's own."""

    def grow(self, rows: NewRows, limits: TreeLimits) -> list[Tree]:
        """Add rows, then give each text's tree of its likeliest nodes. A text may get no row; a
        text that never had a row gets no tree."""

    def advance(self, texts: Sequence[int], tokens: Sequence[int]) -> None:
        """Append one token to each text's chain."""

    def logits(self, text: int) -> Floats:
        """f32 [D + E] at the end of a text's chain; valid until the next call."""


class KernelRunner(DraftKernels):
    """`HeadRunner` on the compiled kernels of the CPU; `form` is the format of the packed matrices."""

    def __init__(
        self,
        config: HeadConfig,
        weights: dict[str, Tensor],
        ends: Ends | StoredEnds,
        form: Format = Format.INT4,
        paired: PairedEntry | None = None,
    ) -> None:
        tokens = weights["tokens"].long()
        super().__init__(config, weights, ends.head, tokens, ends.embedding, form, paired)
        self.config = config
        self.vocab_size = len(ends.embedding)
        self._shared = DraftVocab(tokens, ends.head)
        self._vocabs: dict[int, RequestVocab] = {}

    def close(self, text: int) -> None:
        del self._vocabs[text]
        super().close(text)

    def add_tokens(self, text: int, tokens: Sequence[int]) -> None:
        vocab = self._vocabs[text]
        if new := vocab.add(tokens):
            self.extend_vocab(text, new, vocab.latest)

    def vocab_ids(self, text: int) -> Ints:
        ids: Ints = self._vocabs[text].ids.numpy()
        return ids

    def _opened(self, text: int) -> int:
        number = super()._opened(text)
        self._vocabs[number] = RequestVocab(self._shared)
        return number


@dataclass(slots=True)
class _HeadText:
    kv: HeadKV
    vocab: RequestVocab
    hidden: Tensor | None = None  # [H], the head's output at the last row
    tip: Tensor | None = None  # the same at the end of the chain
    drawn: int = 0  # tokens of the chain


class TorchRunner:
    """`HeadRunner` in plain torch: the kernels are tested against it, and it runs without them."""

    def __init__(self, head: DraftHead) -> None:
        self.config = head.config
        self.vocab_size = head.vocab_size
        self._head = head
        self._texts: dict[int, _HeadText] = {}
        self._numbers = itertools.count()

    def open(self, position: int) -> int:
        return self._add(HeadKV(self.config, position))

    def fork(self, text: int, drop: int) -> int:
        return self._add(self._texts[text].kv.fork(drop))

    def close(self, text: int) -> None:
        del self._texts[text]

    def skip(self, text: int, position: int) -> None:
        self._texts[text].kv.skip(position)

    @torch.inference_mode()
    def read(self, rows: NewRows) -> None:
        held = [self._texts[text] for text in rows.texts]
        self._head.store(
            torch.as_tensor(rows.features), rows.after, [text.kv for text in held], rows.sizes
        )
        for text in held:
            text.hidden = text.tip = None

    def add_tokens(self, text: int, tokens: Sequence[int]) -> None:
        self._texts[text].vocab.add(tokens)

    def vocab_ids(self, text: int) -> Ints:
        ids: Ints = self._texts[text].vocab.ids.numpy()
        return ids

    @torch.inference_mode()
    def grow(self, rows: NewRows, limits: TreeLimits) -> list[Tree]:
        held = [self._texts[text] for text in rows.texts]
        fed = [(text, size) for text, size in zip(held, rows.sizes) if size]
        if fed:
            kvs = [text.kv for text, _ in fed]
            sizes = [size for _, size in fed]
            hidden = self._head.read(torch.as_tensor(rows.features), rows.after, kvs, sizes)
            for (text, _), row in zip(fed, hidden):
                text.hidden = row
        growing: dict[int, GrowingTree[HeadKV]] = {}
        for b, (text, nodes, least) in enumerate(zip(held, limits.nodes, limits.min_scores)):
            text.tip, text.drawn = text.hidden, 0
            text.kv.drop_draft()
            if nodes > 0 and text.hidden is not None:
                growing[b] = GrowingTree(text.kv, text.vocab, text.hidden, nodes, least)
        trees = [Tree()] * len(held)
        grown = grow_trees(self._head, list(growing.values()), limits.width, limits.depth)
        for b, tree in zip(growing, grown):
            trees[b] = tree
            held[b].kv.drop_draft()
        return trees

    @torch.inference_mode()
    def advance(self, texts: Sequence[int], tokens: Sequence[int]) -> None:
        held = [self._texts[text] for text in texts]
        hidden = torch.stack([_tip(text) for text in held])
        kvs = [text.kv for text in held]
        out = self._head.step(hidden, tokens, kvs, [[text.drawn - 1] for text in held])
        for text, row in zip(held, out):
            text.tip = row
            text.drawn += 1

    @torch.inference_mode()
    def logits(self, text: int) -> Floats:
        held = self._texts[text]
        found: Floats = self._head.logits(_tip(held)[None], [held.vocab], [1])[0][0].numpy()
        return found

    def _add(self, kv: HeadKV) -> int:
        number = next(self._numbers)
        self._texts[number] = _HeadText(kv, RequestVocab(self._head.vocab))
        return number


def _tip(text: _HeadText) -> Tensor:
    """Known as soon as `grow` took a row."""
    assert text.tip is not None
    return text.tip


def made_for(target: Path, heads: Iterable[Path]) -> Path | None:
    """The head among some that was made for the very weights in a checkpoint folder; a head may name several."""
    theirs = ModelConfig.from_folder(target)
    fitting: dict[str, Path] = {}
    for path in heads:
        metadata = read_metadata(path)
        config = HeadConfig.from_metadata(metadata)
        if config.hidden == theirs.hidden_size and max(config.layers) < len(theirs.layers):
            fitting |= dict.fromkeys(metadata.get("target", "").split(), path)
    return fitting.get(fingerprint(target)) if fitting else None


def load_head(path: Path, target: Path) -> HeadRunner:
    """The head in a file, or a published head in a folder, for the target in a checkpoint folder. ValueError
    in one sentence about a file that is no head, or a head of another target."""
    if os.path.isdir(path):  # an overlong name is none
        return _load_published(path, target)
    if path.name == "config.json":
        raise ValueError(f"head {path}: give the folder of a published head, {path.parent}")
    config, weights = read_head(path)
    theirs = read_metadata(path).get("target")
    if theirs is not None and fingerprint(target) not in theirs.split():
        logger.warning("head {} was trained for another target: few drafts may be accepted", path)
    layers = len(ModelConfig.from_folder(target).layers)
    if max(config.layers) >= layers:
        raise ValueError(
            f"head {path} reads layer {max(config.layers)} of its target, which has {layers}"
        )
    stored = stored_ends(target) if library.available() else None
    ends = read_ends(target) if stored is None else stored
    largest, known = int(weights["tokens"].max()), len(ends.embedding)
    if ends.embedding.shape[1] != config.hidden or largest >= known:
        raise ValueError(
            f"head {path}: the head is of a target with hidden_size={config.hidden} and a vocabulary "
            f"of at least {largest + 1}; this one has {ends.embedding.shape[1]} and {known}"
        )
    return runner_of(config, weights, ends)


def _load_published(folder: Path, target: Path) -> HeadRunner:
    config, weights = read_eagle(folder, ModelConfig.from_folder(target))
    embedding = embedding_of(folder, config, target)
    if library.available():
        if (paired := config.paired()) is not None:
            return KernelRunner(config.shape, weights, StoredEnds(embedding), paired=paired)
        logger.info("the draft head runs in plain torch: its layer is none of the kernels'")
    return TorchRunner(EagleHead(config, weights, embedding))


def runner_of(
    config: HeadConfig, weights: dict[str, Tensor], ends: Ends | StoredEnds
) -> HeadRunner:
    """On the compiled kernels where they run, else in torch, with one line in the log."""
    if isinstance(ends, StoredEnds) or library.available():
        return KernelRunner(config, weights, ends)
    logger.info("the draft head runs in plain torch, where it takes longer than it may bring")
    return TorchRunner(TrainedHead(config, weights, ends))
