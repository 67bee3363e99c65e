"""What may come next, token by token: runs that are narrowed down as the text goes on."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.draft.suffix.found import Source
from fastslow.draft.suffix.trust import Trust

FEW = 4  # runs left of a sample, below which all of them are worth a new search


class Runs:
    """The runs that followed the longest matches, of whatever sources, read in step.

    As tokens come, the runs that go otherwise are dropped. Those that are left are again the
    longest matches: whatever matches one token more now did match one less before.

    Attributes:
        runs: tokens that followed, and those of them that came already.
        at: how many of them came.
        length: tokens that matched when the runs were found.
    """

    def __init__(
        self, sources: Sequence[Source] = (), recent: list[int] | None = None, ahead: int = 0
    ) -> None:
        """See `Source.find`."""
        self.at = 0
        founds = [source.find(recent or [], ahead) for source in sources]
        self.length = max([found.length for found in founds], default=0)
        self.runs: list[Sequence[int]] = []
        self._whole = True
        for found in founds:
            if found.length == self.length:
                self.runs += [run for run in found.runs if run]
                self._whole = self._whole and found.whole

    def follow(self, tokens: list[int], trust: Trust) -> None:
        """These tokens came: keep the runs that said so, and let `trust` know."""
        for token in tokens:
            going = [run for run in self.runs if len(run) > self.at]
            self.runs = [run for run in going if run[self.at] == token]
            if going:
                trust.learn(self.length + self.at, bool(self.runs))
            self.at += 1
            if not self.runs:
                return

    def last(self, nodes: int) -> bool:
        """Whether they still say all there is to say about the next `nodes` tokens."""
        enough = self._whole or len(self.runs) >= FEW
        return enough and any(len(run) >= self.at + nodes for run in self.runs)
