"""Mask of the tokens that may come next, where a grammar has a say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Allowed = NDArray[np.bool_]
_NEVER = np.float32(-np.inf)
CERTAIN = -1  # in `Tree.drafter_ids`: a grammar leaves no choice here


class TokenMask(NamedTuple):
    """Mask of the tokens that a grammar lets come next."""

    only: int | None = None  # no other may come
    allowed: Allowed | None = None  # [V]; None where all tokens may come that are not forbidden
    forbidden: Sequence[int] = ()
    before: bool = False  # the answer has not begun: a thinking budget may decide

    def applied(self, logits_V: torch.Tensor) -> torch.Tensor:
        """A copy in which no other token can win."""
        if self.allowed is not None:
            allowed_V = torch.from_numpy(self.allowed[: len(logits_V)])
            if logits_V.device.type == "cpu":  # with numpy: torch would wake its threads
                return torch.from_numpy(np.where(allowed_V.numpy(), logits_V.numpy(), _NEVER))
            allowed_V = allowed_V.to(logits_V.device)
            return logits_V.masked_fill(~allowed_V, -torch.inf)
        logits_V = logits_V.clone()
        if len(self.forbidden):
            logits_V[torch.tensor(self.forbidden, device=logits_V.device)] = -torch.inf
        return logits_V


class GrammarRule(Protocol):
    """Rule by which a grammar changes the target's probabilities: a function of the text alone, so it holds for
    drafted tokens as for committed ones."""

    @property
    def walks_slowly(self) -> bool:
        """True where following drafts takes longer than they are worth. What was sampled may end a draft by it, but
        only after the token that took long."""

    def at(self, tokens: Sequence[int], drafted: Sequence[int]) -> TokenMask:
        """Return the mask of what may come after `tokens` and then `drafted`."""

    def begun(self, tokens: Sequence[int]) -> bool:
        """Tell whether the answer has begun in `tokens`: from there on no tag opens or closes a thought."""

    def fits(self, tokens: Sequence[int], drafted: Sequence[int]) -> bool:
        """Tell whether `drafted` may come after `tokens`, and holds nothing after the answer's end."""

    def ahead(self, tokens: Sequence[int], drafted: Sequence[int], most: int) -> Sequence[int]:
        """Tokens after these that are certain, at most `most`."""
