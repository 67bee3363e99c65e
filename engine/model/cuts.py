"""How ranks share a tensor."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Over(Enum):
    """Which ranks share a tensor's cut axis, and in units of what."""

    NOBODY = "every rank holds all of it"
    ALL = "all ranks"
    HEADS = "the ranks of one replica of attention, whole query heads each"
    KV_HEADS = "the ranks of one replica of attention, whole KV heads each"
    QKV = "as query heads and KV heads, which lie below each other in one matrix"
    EXPERTS = "the ranks that hold the expert's group; the others hold nothing of it"
    FIRST_OF_ALL = "held by the first rank alone, since it is added once"
    FIRST_OF_HEADS = "held by the first rank of each replica of attention alone"
    FIRST_OF_EXPERTS = "held by the first of the ranks that share the expert alone"


class Cut(NamedTuple):
    """How a tensor is cut where several ranks share a model. axis: None where it is not cut.

    Matrices are [out, in]. Cutting the outs of one matrix and the ins of the next (Megatron-LM,
    Shoeybi et al., arXiv 1909.08053) leaves every rank with a partial sum; the sum over all ranks
    is whole.
    """

    over: Over
    axis: int | None = None


Cuts = tuple[tuple[str, Cut], ...]  # a pattern of names, and their cut

LAYER = r"model\.layers\.\d+\."
ATTENTION = LAYER + r"self_attn\."
MLP = LAYER + r"mlp\."
EXPERT = MLP + r"experts\.(\d+)\."

DECODER_CUTS: Cuts = (
    (r"model\.embed_tokens\.weight|lm_head\.weight", Cut(Over.ALL, 0)),
    (r"model\.norm\.weight", Cut(Over.NOBODY)),
    (LAYER + r"(input|post_attention)_layernorm\.weight", Cut(Over.NOBODY)),
    (ATTENTION + r"q_proj\.(weight|bias)", Cut(Over.HEADS, 0)),
    (ATTENTION + r"[kv]_proj\.(weight|bias)", Cut(Over.KV_HEADS, 0)),
    (ATTENTION + r"o_proj\.weight", Cut(Over.HEADS, 1)),
    (ATTENTION + r"o_proj\.bias", Cut(Over.FIRST_OF_HEADS)),
    (MLP + r"gate\.weight", Cut(Over.NOBODY)),
    (EXPERT + r"(gate|up)_proj\.weight", Cut(Over.EXPERTS, 0)),
    (EXPERT + r"down_proj\.weight", Cut(Over.EXPERTS, 1)),
    (MLP + r"(shared_expert\.)?(gate|up)_proj\.(weight|bias)", Cut(Over.ALL, 0)),
    (MLP + r"(shared_expert\.)?down_proj\.weight", Cut(Over.ALL, 1)),
    (MLP + r"down_proj\.bias", Cut(Over.FIRST_OF_ALL)),
)
HEAD_NORM_CUTS: Cuts = ((ATTENTION + r"[qk]_norm\.weight", Cut(Over.NOBODY)),)
