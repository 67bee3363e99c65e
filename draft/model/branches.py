"""A draft with branches: the nodes that are likeliest to be on the accepted path."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fastslow.draft.model.chain import Warm
from fastslow.draft.model.kv import DraftText
from fastslow.draft.model.lexicon import Lexicon
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.types import Floats, Ints, ModelOutput, OneHot, Segment, TargetProbs, Tree

ROOT = -1


@dataclass(slots=True)
class _TreeNode:
    token: int
    parent: int
    depth: int  # 1 = follows the text
    score: float  # log-probability of its path
    slot: int = -1  # which of the draft's slots its KV lies in; -1 = it has not run


class TreeRun:
    """A tree of chosen nodes, grown level by level; for requests at temperature 0.

    Of all candidates, those with the likeliest paths make the tree (the dynamic tree of EAGLE-2,
    arXiv 2406.16858). A node runs when its level is newest and a child of it could still be among
    them, so that there are never more levels than a chain of as many nodes has.

    Args:
        text: what it follows.
        most: nodes of the tree.
        width: most children of a node.
        law: logits -> law under a request's parameters.
        lexicon: between the draft model's tokens and the target's.
    """

    def __init__(
        self, text: DraftText, most: int, width: int, law: TargetProbs, lexicon: Lexicon
    ) -> None:
        self.text = text
        self._most = most
        self._width = width
        self._law = law
        self._lexicon = lexicon
        self._warm = Warm.of(text.request)
        self._length = len(text.tokens)
        self._nodes: list[_TreeNode] = []
        self._best: list[int] = []  # nodes of the tree, likeliest first; parents before children
        self._open: list[int] = [ROOT]  # nodes that run next

    @property
    def open(self) -> bool:
        return bool(self._open)

    def rows(self, cache: KVCache) -> list[Segment]:
        if self._open == [ROOT]:
            return [self.text.rest(cache)]
        slots = cache.slots(self.text.request.id, 0, self._length + self._most)
        return [self._segment(slots, i) for i in self._open]

    def take(self, out: ModelOutput) -> None:
        first = len(self._nodes)
        for i, logits_V in zip(self._open, self._lexicon.logits(out.logits)):
            path = [self._nodes[n].token for n in self._path(i)]
            self._grow(i, self._law(logits_V, self._warm, path))
        order = sorted(range(len(self._nodes)), key=lambda i: (-self._nodes[i].score, i))
        self._best = order[: self._most]
        # a child of the last place would come after it, and so not be in
        self._open = [i for i in self._best[: self._most - 1] if i >= first and self._own(i)]
        self._place()

    def stop(self) -> None:
        self._open = []

    def tree(self) -> Tree:
        kept = sorted(self._best)
        places = {ROOT: ROOT} | {i: place for place, i in enumerate(kept)}
        nodes = [self._nodes[i] for i in kept]
        return Tree([n.token for n in nodes], [places[n.parent] for n in nodes])

    def _grow(self, parent: int, law: Floats | OneHot) -> None:
        above = _TreeNode(0, ROOT, 0, 0.0) if parent == ROOT else self._nodes[parent]
        for token, p in _likeliest(law, min(self._width, self._most)):
            score = above.score + min(math.log(p), 0.0)  # no likelier than its parent, ever
            self._nodes.append(_TreeNode(token, parent, above.depth + 1, score))

    def _place(self) -> None:
        """A slot for each node that runs: what is out of the tree stays out, and frees its own."""
        used = {self._nodes[i].slot for i in self._best}
        free = [slot for slot in range(self._most) if slot not in used]
        for i, slot in zip(self._open, free):
            self._nodes[i].slot = slot

    def _segment(self, slots: Ints, i: int) -> Segment:
        node = self._nodes[i]
        path = [self._length + self._nodes[n].slot for n in self._path(i)]
        return Segment(
            tokens=self._own(i),
            positions=[self._length + node.depth - 1],
            parents=[-1],
            slots=slots[path[-1:]],
            context=np.concatenate([slots[: self._length], slots[path[:-1]]]),
            groups=self.text.groups,
            outputs=[0],
            max_len=self.text.max_len,
        )

    def _own(self, i: int) -> list[int]:
        """The draft model's token for node i, if it has one."""
        own = self._lexicon.token(self._nodes[i].token)
        return [] if own is None else [own]

    def _path(self, i: int) -> list[int]:
        """Nodes from the text to node i, itself the last."""
        path: list[int] = []
        while i != ROOT:
            path.append(i)
            i = self._nodes[i].parent
        return path[::-1]


def _likeliest(law: Floats | OneHot, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens with their probabilities, likeliest first."""
    if isinstance(law, OneHot):
        return [(law.token, 1.0)]
    best = torch.topk(torch.from_numpy(law), min(count, len(law)))
    ranked = sorted(zip(best.indices.tolist(), best.values.tolist()), key=lambda x: (-x[1], x[0]))
    return [(token, p) for token, p in ranked if p > 0]
