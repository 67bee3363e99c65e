"""A head in plain torch: what the kernels are tested against, and what runs without them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastslow.draft.head.context import Context, DraftHead
from fastslow.draft.head.state import RequestVocab
from fastslow.draft.head.tree import Growing, grow_trees
from fastslow.engine.types import Floats, Ints, Tree


@dataclass(slots=True)
class _HeadText:
    """hidden: [H], the head's output at the last row; tip, drawn: the same at the end of the chain,
    and its length."""

    context: Context
    words: RequestVocab
    hidden: Tensor | None = None
    tip: Tensor | None = None
    drawn: int = 0


class TorchRunner:
    """See `Runner`.

    Args:
        head: in torch.
    """

    def __init__(self, head: DraftHead) -> None:
        self.layers = head.config.layers
        self.hidden = head.config.hidden
        self.width = head.width
        self.prompt = head.config.prompt
        self._head = head
        self._texts: dict[int, _HeadText] = {}
        self._numbers = itertools.count()

    def open(self, position: int) -> int:
        number = next(self._numbers)
        self._texts[number] = _HeadText(
            Context(self._head.config, position), RequestVocab(self._head.common)
        )
        return number

    def fork(self, text: int, drop: int) -> int:
        number = next(self._numbers)
        context = self._texts[text].context.fork(drop)
        self._texts[number] = _HeadText(context, RequestVocab(self._head.common))
        return number

    def close(self, text: int) -> None:
        del self._texts[text]

    def skip(self, text: int, position: int) -> None:
        self._texts[text].context.skip(position)

    @torch.inference_mode()
    def read(
        self, texts: Sequence[int], sizes: Sequence[int], after: Sequence[int], features: Tensor
    ) -> None:
        held = [self._texts[text] for text in texts]
        self._head.store(features, after, [text.context for text in held], sizes)
        for text in held:
            text.hidden = text.tip = None

    def add_words(self, text: int, tokens: Sequence[int]) -> None:
        self._texts[text].words.add(tokens)

    def words(self, text: int) -> Ints:
        ids: Ints = self._texts[text].words.ids.numpy()
        return ids

    @torch.inference_mode()
    def grow(
        self,
        texts: Sequence[int],
        fresh: Sequence[int],
        after: Sequence[int],
        features: Tensor,
        nodes: Sequence[int],
        width: int,
        depth: int,
        least: Sequence[float],
    ) -> list[Tree]:
        held = [self._texts[text] for text in texts]
        growing = [(text, size) for text, size in zip(held, fresh) if size]
        if growing:
            sizes = [size for _, size in growing]
            contexts = [text.context for text, _ in growing]
            for (text, _), row in zip(growing, self._head.read(features, after, contexts, sizes)):
                text.hidden = row
        for text in held:
            text.tip, text.drawn = text.hidden, 0
            text.context.forget()
        trees = [Tree()] * len(held)
        able = [b for b, text in enumerate(held) if nodes[b] > 0 and text.hidden is not None]
        begun = []
        for b in able:
            root = held[b].hidden
            assert root is not None
            begun.append(Growing(held[b].context, held[b].words, root, nodes[b], least[b]))
        for b, tree in zip(able, grow_trees(self._head, begun, width, depth)):
            trees[b] = tree
            held[b].context.forget()
        return trees

    @torch.inference_mode()
    def follow(self, texts: Sequence[int], tokens: Sequence[int]) -> None:
        held = [self._texts[text] for text in texts]
        hidden = torch.stack([_tip(text) for text in held])
        contexts = [text.context for text in held]
        out = self._head.step(hidden, tokens, contexts, [[text.drawn - 1] for text in held])
        for text, row in zip(held, out):
            text.tip = row
            text.drawn += 1

    @torch.inference_mode()
    def logits(self, text: int) -> Floats:
        held = self._texts[text]
        (logits,) = self._head.logits(_tip(held)[None], [held.words], [1])
        found: Floats = logits[0].numpy()
        return found


def _tip(text: _HeadText) -> Tensor:
    """There is one as soon as a row was taken in."""
    assert text.tip is not None
    return text.tip
