"""A head on the compiled kernels: a whole tree in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastslow.draft.head.config import HeadConfig
from fastslow.draft.head.target import Ends, StoredEnds
from fastslow.draft.head.words import Common, Words
from fastslow.engine.ops.cpu.draft_head import DraftKernels, DraftShape
from fastslow.engine.ops.cpu.formats import Format
from fastslow.engine.types import Floats, Ints, Tree


class KernelRunner:
    """See `Runner`.

    Args:
        config, weights: of the head.
        ends: of the target.
        form: that its matrices are packed in.
    """

    def __init__(
        self,
        config: HeadConfig,
        weights: dict[str, Tensor],
        ends: Ends | StoredEnds,
        form: Format = Format.INT4,
    ) -> None:
        self.layers = config.layers
        self.hidden = config.hidden
        self.width = len(ends.embedding)
        self.prompt = config.prompt
        tokens = weights["tokens"].long()
        shape = DraftShape(
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            neurons=config.neurons,
            rope_theta=config.rope_theta,
            eps=config.eps,
            window=config.window,
        )
        self._kernels = DraftKernels(shape, weights, ends.head, tokens, ends.embedding, form)
        self._common = Common(tokens, ends.head)
        self._words: dict[int, Words] = {}

    def open(self, position: int) -> int:
        number = self._kernels.open(position)
        self._words[number] = Words(self._common)
        return number

    def fork(self, text: int, drop: int) -> int:
        number = self._kernels.fork(text, drop)
        self._words[number] = Words(self._common)
        return number

    def close(self, text: int) -> None:
        del self._words[text]
        self._kernels.close(text)

    def skip(self, text: int, position: int) -> None:
        self._kernels.skip(text, position)

    def read(
        self, texts: Sequence[int], sizes: Sequence[int], after: Sequence[int], features: Tensor
    ) -> None:
        self._kernels.read(texts, sizes, after, features)

    def add_words(self, text: int, tokens: Sequence[int]) -> None:
        words = self._words[text]
        before = len(words.ids)
        words.add(tokens)
        if len(words.ids) > before:
            first = before - len(self._common.ids)
            self._kernels.add_words(text, words.ids[before:].tolist(), words.rows[first:])

    def words(self, text: int) -> Ints:
        ids: Ints = self._words[text].ids.numpy()
        return ids

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
        if not texts:
            return []
        return self._kernels.grow(texts, fresh, after, features, nodes, width, depth, least)

    def follow(self, texts: Sequence[int], tokens: Sequence[int]) -> None:
        self._kernels.follow(texts, tokens)

    def logits(self, text: int) -> Floats:
        return self._kernels.logits(text)
