"""The draft of one request while a model makes it: a chain token by token, or a tree level by level."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from fastslow.draft.base import DraftChain
from fastslow.draft.model.kv import DraftText
from fastslow.draft.model.vocab import VocabMap
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.rows import Segment
from fastslow.engine.types import Floats, Ints, ModelOutput, OneHot, RequestView, TargetProbs, Tree

# A greedy target takes its best token, which is the draft model's best token more often than that one's
# probability. A temperature below 1 corrects this; at 1, trees were too wide.
WARM = {"temperature": 0.6, "top_k": -1, "top_p": 1.0, "min_p": 0.0}
ROOT = -1


class DraftRun(ABC):
    """A draft of at most `nodes` nodes after `text`, while it is made."""

    def __init__(self, text: DraftText, nodes: int) -> None:
        self.text = text
        self.nodes = nodes

    @property
    @abstractmethod
    def open(self) -> bool:
        """True while there are rows to run."""

    def rows(self, cache: KVCache) -> list[Segment]:
        """The segments to run next, each with one output: of all tokens of the text that are left, the last one's."""
        size = self.text.pending
        return [self.text.segment(cache, size, [size - 1])]

    @abstractmethod
    def take(self, out: ModelOutput) -> None:
        """Use what the model gave for these rows; FloatingPointError where the logits are not finite."""

    @abstractmethod
    def stop(self) -> None:
        """Run no more rows; the nodes drafted so far stay."""

    @abstractmethod
    def tree(self) -> Tree: ...


class ChainRun(DraftRun):
    """A chain: chosen nodes at temperature 0, else sampled ones; see `DraftChain`."""

    def __init__(
        self, text: DraftText, nodes: int, target_probs: TargetProbs, vocab_map: VocabMap
    ) -> None:
        super().__init__(text, nodes)
        self._target_probs = target_probs
        self._vocab_map = vocab_map
        self._chain = DraftChain(text.request)

    @property
    def open(self) -> bool:
        return len(self._chain.tokens) < self.nodes

    def take(self, out: ModelOutput) -> None:
        if self.text.only_best:
            probs: Floats | OneHot = self._forced() or OneHot(best_of(out))
        else:
            logits_V = self._vocab_map.logits(out.logits)[0]
            probs = self._target_probs(logits_V, self.text.request, self._chain.tokens)
        own = self._vocab_map.token(self._chain.add(probs))
        if own is None:
            self.stop()
        else:
            self.text.tokens.append(own)

    def _forced(self) -> OneHot | None:
        """The next token, if the request's thinking budget forces one."""
        request = self.text.request
        if request.thinking is None:
            return None
        forced = request.thinking.at(request.tokens, self._chain.tokens)
        return forced if isinstance(forced, OneHot) else None

    def stop(self) -> None:
        self.nodes = len(self._chain.tokens)

    def tree(self) -> Tree:
        return self._chain.tree()


def best_of(out: ModelOutput) -> int:
    """The likeliest token of a row with `only_best`; FloatingPointError where some logit is not finite."""
    token = int(out.best[0])
    if token < 0:
        raise FloatingPointError("the draft model's logits are not finite numbers")
    return token


class WarmView:
    """A request at a mild temperature, with its own bias, penalties and end tokens."""

    def __init__(self, request: RequestView) -> None:
        self._request = request
        self.params = request.params.model_copy(update=WARM)
        own = request.thought_params
        self.thought_params = own and own.model_copy(update=WARM)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class TreeRun(DraftRun):
    """A tree of chosen nodes with at most `width` children each, for requests at temperature 0.

    Of all candidates, the likeliest nodes make the tree (the dynamic tree of EAGLE-2, arXiv
    2406.16858). A node runs when its level is newest and a child of it could still be among them, so
    that there are never more levels than a chain of as many nodes has.
    """

    def __init__(
        self,
        text: DraftText,
        nodes: int,
        width: int,
        target_probs: TargetProbs,
        vocab_map: VocabMap,
    ) -> None:
        super().__init__(text, nodes)
        self._width = width
        self._target_probs = target_probs
        self._vocab_map = vocab_map
        self._warm: Any = WarmView(text.request)
        self._length = len(text.tokens)
        self._tokens: list[int] = []  # of all candidates so far
        self._parents: list[int] = []
        self._scores: list[float] = []  # log-probability of the node and all before it
        self._slots: list[int] = []  # which of the draft's slots its KV is in; -1 = it has not run
        self._best: list[int] = []  # nodes of the tree, likeliest first; parents before children
        self._open: list[int] = [ROOT]  # nodes that run next

    @property
    def open(self) -> bool:
        return bool(self._open)

    def rows(self, cache: KVCache) -> list[Segment]:
        if self._open == [ROOT]:
            return super().rows(cache)
        slots = cache.slots(self.text.request.id, 0, self._length + self.nodes)
        return [self._segment(cache, slots, i) for i in self._open]

    def take(self, out: ModelOutput) -> None:
        first = len(self._tokens)
        for i, logits_V in zip(self._open, self._vocab_map.logits(out.logits)):
            drafted = [self._tokens[n] for n in self._path(i)]
            self._expand(i, self._target_probs(logits_V, self._warm, drafted))
        order = sorted(range(len(self._tokens)), key=lambda i: (-self._scores[i], i))
        self._best = order[: self.nodes]
        # a child of the last place would come after it, and so not be in
        self._open = [i for i in self._best[: self.nodes - 1] if i >= first and self._own(i)]
        used = {self._slots[i] for i in self._best}  # what left the tree frees its slot
        free = [slot for slot in range(self.nodes) if slot not in used]
        for i, slot in zip(self._open, free):
            self._slots[i] = slot

    def stop(self) -> None:
        self._open = []

    def tree(self) -> Tree:
        return Tree(self._tokens, self._parents).only(sorted(self._best))

    def _expand(self, parent: int, probs: Floats | OneHot) -> None:
        above = 0.0 if parent == ROOT else self._scores[parent]
        for token, p in _likeliest(probs, min(self._width, self.nodes)):
            self._tokens.append(token)
            self._parents.append(parent)
            self._scores.append(above + min(math.log(p), 0.0))  # no likelier than its parent, ever
            self._slots.append(-1)

    def _segment(self, cache: KVCache, slots: Ints, i: int) -> Segment:
        path = [self._length + self._slots[n] for n in self._path(i)]
        return Segment(
            tokens=self._own(i),
            positions=[self._length + len(path) - 1],
            parents=[-1],
            slots=slots[path[-1:]],
            context=np.concatenate([slots[: self._length], slots[path[:-1]]]),
            groups=self.text.groups,
            outputs=[0],
            max_len=self.text.max_len,
            running=cache.running(
                self.text.request.id, path[-1:], 0, [self._length - 1, *path[:-1]]
            ),
        )

    def _own(self, i: int) -> list[int]:
        own = self._vocab_map.token(self._tokens[i])
        return [] if own is None else [own]

    def _path(self, i: int) -> list[int]:
        """Nodes from the text to node i, itself the last."""
        path: list[int] = []
        while i != ROOT:
            path.append(i)
            i = self._parents[i]
        return path[::-1]


def _likeliest(probs: Floats | OneHot, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens with their probabilities, likeliest first."""
    if isinstance(probs, OneHot):
        return [(probs.token, 1.0)]
    best = torch.topk(torch.from_numpy(probs), min(count, len(probs)))
    ranked = sorted(zip(best.indices.tolist(), best.values.tolist()), key=lambda x: (-x[1], x[0]))
    return [(token, p) for token, p in ranked if p > 0]
