"""What runs a head: for texts that it numbers, it takes rows in and grows trees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from loguru import logger
from torch import Tensor

from fastslow.draft.head.config import HeadConfig
from fastslow.draft.head.head import Head, read_head, read_metadata
from fastslow.draft.head.state import DraftVocab, RequestVocab
from fastslow.draft.head.target import Ends, StoredEnds, fingerprint, read_ends, stored_ends
from fastslow.draft.head.torch_runner import TorchRunner
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.draft_head import DraftKernels, DraftShape
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.types import Floats, Ints, Tree


class HeadRunner(Protocol):
    """Two of them: `TorchRunner`, plain, and `KernelRunner`, the compiled kernels of the CPU.

    A text's *chain* begins at the last row taken in and is drawn token by token from outside; `grow`
    begins it anew.

    Attributes:
        layers: of the target, whose features are read.
        hidden: H of the target.
        width: V, of the target's vocabulary.
        prompt: rows in front of a text's last one that are worth showing, the last ones; 0 = the head
            was not trained to see a prompt.
    """

    layers: tuple[int, ...]
    hidden: int
    width: int
    prompt: int

    def open(self, position: int) -> int:
        """A new text whose first row will stand at a position; its number."""

    def fork(self, text: int, drop: int) -> int:
        """A new text with the rows of another one but its last `drop`, which stand one behind the
        other; its number. It has no words of its own, and no tree or chain until `grow` takes in a row.
        """

    def close(self, text: int) -> None:
        """Forget a text."""

    def skip(self, text: int, position: int) -> None:
        """A text's next row will stand there: rows between were never shown."""

    def read(
        self, texts: Sequence[int], sizes: Sequence[int], after: Sequence[int], features: Tensor
    ) -> None:
        """Take rows in that nothing is drafted from, at less than `grow` takes. A text has no tree
        and no chain then until `grow` takes in a row behind them.

        Args:
            texts: B of them, each once.
            sizes: rows of each.
            after: R tokens, text by text, each the one after its row.
            features: [R, F] of these rows.
        """

    def add_words(self, text: int, tokens: Sequence[int]) -> None:
        """Tokens that came in a text: they can be drafted for it from now on."""

    def words(self, text: int) -> Ints:
        """[D + E] token ids, in the order of the logits: common ones, and the text's own."""

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
        """Take rows in, and give each text's tree of the likeliest paths.

        Args:
            texts: B of them, each once.
            fresh: rows of each to take in first; a text that never had one gets no tree.
            after: R tokens, text by text, each the one after its row.
            features: [R, F] of these rows.
            nodes: most nodes of each tree; 0 = none.
            width: nodes of a depth that go on, and children of each; 1 gives chains.
            depth: of the deepest node.
            least: no node of a tree is less likely than this with all before it, 0..1.
        """

    def follow(self, texts: Sequence[int], tokens: Sequence[int]) -> None:
        """One more token of each text's chain."""

    def logits(self, text: int) -> Floats:
        """f32 [D + E] at the end of a text's chain; valid until the next call."""


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
        self._common = DraftVocab(tokens, ends.head)
        self._words: dict[int, RequestVocab] = {}

    def open(self, position: int) -> int:
        number = self._kernels.open(position)
        self._words[number] = RequestVocab(self._common)
        return number

    def fork(self, text: int, drop: int) -> int:
        number = self._kernels.fork(text, drop)
        self._words[number] = RequestVocab(self._common)
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
        self._kernels.advance(texts, tokens)

    def logits(self, text: int) -> Floats:
        return self._kernels.logits(text)


def load_head(path: Path, target: Path) -> HeadRunner:
    """The head in a file, for the target in a checkpoint folder; on the CPU, wherever that one runs.

    Raises:
        ValueError: one sentence about a file that is no head, or one of another target.
    """
    config, weights = read_head(path)
    theirs = read_metadata(path).get("target")
    if theirs is not None and theirs != fingerprint(target):
        logger.warning("head {} was trained for another target: few drafts may be accepted", path)
    layers = ModelConfig.from_folder(target).layers
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


def runner_of(
    config: HeadConfig, weights: dict[str, Tensor], ends: Ends | StoredEnds
) -> HeadRunner:
    """On the compiled kernels where they run, else in torch, which one log line says."""
    if isinstance(ends, StoredEnds) or library.available():
        return KernelRunner(config, weights, ends)
    logger.info("the draft head runs in plain torch, where it takes longer than it may bring")
    return TorchRunner(Head(config, weights, ends))
