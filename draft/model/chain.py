"""The chain of one request while a model drafts it, token by token."""

from __future__ import annotations

from fastslow.draft.base import DraftChain
from fastslow.draft.model.kv import DraftText
from fastslow.draft.model.vocab import VocabMap
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.rows import Segment
from fastslow.engine.sampling.probs import probs_at
from fastslow.engine.types import Floats, ModelOutput, OneHot, Tree


class ModelChain:
    """A chain of at most `nodes` nodes after `text`: chosen ones at temperature 0, else sampled ones; see
    `DraftChain`."""

    def __init__(self, text: DraftText, nodes: int, vocab_map: VocabMap) -> None:
        self.text = text
        self.nodes = nodes
        self._vocab_map = vocab_map
        self._chain = DraftChain(text.request)

    @property
    def open(self) -> bool:
        """True while there are rows to run."""
        return len(self._chain.tokens) < self.nodes

    def rows(self, cache: KVCache) -> Segment:
        """Rows of all tokens of the text that are left, with the last one's output."""
        size = self.text.pending
        return self.text.segment(cache, size, [size - 1])

    def take(self, out: ModelOutput) -> None:
        """Use what the model gave for these rows; FloatingPointError where the logits are not finite."""
        if self.text.only_best:
            probs: Floats | OneHot = self._forced() or OneHot(_best_of(out))
        else:
            logits_V = self._vocab_map.logits(out.logits)[0]
            probs = probs_at(logits_V, self.text.request, self._chain.tokens)
        own = self._vocab_map.token(self._chain.add(probs))
        if own is None:
            self.stop()
        else:
            self.text.tokens.append(own)

    def stop(self) -> None:
        """Run no more rows; the nodes drafted so far stay."""
        self.nodes = len(self._chain.tokens)

    def tree(self) -> Tree:
        return self._chain.tree()

    def _forced(self) -> OneHot | None:
        """The next token, if the request's thinking budget forces one."""
        request = self.text.request
        if request.thinking is None:
            return None
        forced = request.thinking.at(request.tokens, self._chain.tokens)
        return forced if isinstance(forced, OneHot) else None


def _best_of(out: ModelOutput) -> int:
    """The likeliest token of a row with `only_best`; FloatingPointError where some logit is not finite."""
    token = int(out.best[0])
    if token < 0:
        raise FloatingPointError("the draft model's logits are not finite numbers")
    return token
