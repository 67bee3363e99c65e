"""Models that draft: a smaller one, the target with less of itself, one with other tokens."""

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, DraftKV, OwnKV
from fastslow.draft.model.retold import RetoldDraft, model_draft_across

__all__ = [
    "BorrowedKV",
    "DraftKV",
    "ModelDraft",
    "OwnKV",
    "RetoldDraft",
    "model_draft_across",
]
