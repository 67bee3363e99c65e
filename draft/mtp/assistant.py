"""The drafter with a model's published assistant, which reads the model's own keys and values (Gemma 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastslow.draft.mtp.layer import DraftedText, LayerDraft
from fastslow.engine.rows import Segment
from fastslow.engine.types import Ints, RequestView


@dataclass(slots=True)
class AssistedText(DraftedText):
    """A request's text. state: [1, H] of its last row but one, which the target has read. slots: of all rows
    that it has read."""

    state: Tensor
    slots: Ints

    def child(self, parent: int, token: int) -> Segment:
        """Beside all others at the place of the text's last token: it sees what the target has read, and no draft."""
        return Segment(
            tokens=[token],
            positions=[self.end - 1],
            parents=[-1],
            slots=self.slots[-1:],
            context=self.slots[:-1],
            groups=self.request.groups,
            outputs=[0],
            max_len=self.request.max_len,
        )


class AssistantDraft(LayerDraft[AssistedText]):
    """Drafts with an assistant, whose rows write nothing: trees take no pages, and nothing is kept of a text but one
    hidden state. So a request's first draft comes after its first step, and the step after a rest has none."""

    def _known(self, request: RequestView, nodes: int) -> AssistedText | None:
        text, size = self._texts.get(request.id), len(request.tokens)
        if text is None or text.end != size or request.computed != size - 1:
            return None
        text.slots = self._cache.slots(request.id, 0, size - 1)
        return text

    def _take(self, request: RequestView, position: int, states: Tensor) -> AssistedText:
        end, none = position + 1 + len(states), np.empty(0, dtype=np.int64)
        text = self._texts[request.id] = AssistedText(request, end, states[-1:], none)
        return text

    def _run(self, texts: Sequence[AssistedText]) -> Tensor:
        segments = [text.child(-1, text.request.tokens[-1]) for text in texts]
        return self._forward(segments, torch.cat([text.state for text in texts]))

    def _room(self, text: AssistedText) -> None:
        """None: assistants write no rows."""
