"""The way to draft with a model whose tokenizer is not the target's."""

from __future__ import annotations

from loguru import logger

from fastslow.draft.model.common import CommonLexicon, shared
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import DraftKV
from fastslow.draft.model.lockstep import Lockstep
from fastslow.draft.model.retold import RetoldDraft
from fastslow.draft.model.spelling import Speller, Spelling
from fastslow.engine.model.base import Model
from fastslow.engine.types import Law

ENOUGH = 0.9  # of the larger vocabulary in common


def model_draft_across(
    model: Model,
    kv: DraftKV,
    law: Law,
    target: Spelling,
    own: Spelling,
    columns: int,
    width: int = 1,
) -> Lockstep:
    """A drafter for two vocabularies: by tokens where nearly all are in common, else by text.

    By tokens, drafts can be sampled, and branch, and nothing is encoded while drafting; but the
    draft model cannot say what both do not hold, and says in two tokens what the target says in
    one, which is refused. By text, any pair works, but nodes are chosen at every temperature.

    Args:
        model: the drafting model.
        kv: pages of its own.
        law: logits -> law under a request's parameters.
        target: the target's tokenizer.
        own: the draft model's.
        columns: logits of the target.
        width: most children of a node, where drafts can branch.
    """
    theirs, ours = Speller(target), Speller(own)
    share = shared(theirs, ours)
    if share < ENOUGH:
        logger.info("{:.0%} of the tokens are in common: drafts are told by text", share)
        return RetoldDraft(model, kv, target, own)
    logger.info("{:.0%} of the tokens are in common: drafts are mapped token by token", share)
    return ModelDraft(model, kv, law, width=width, lexicon=CommonLexicon(theirs, ours, columns))
