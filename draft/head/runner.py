"""What runs a head: for texts that it numbers, it takes rows in and grows trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fastslow.engine.types import Floats, Ints, Tree


class Runner(Protocol):
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
