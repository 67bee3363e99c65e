"""How ranks share a tensor."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class ShardAxis(Enum):
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


class ShardRule(NamedTuple):
    """How a tensor is cut where several ranks share a model. axis: None where it is not cut.

    Matrices are [out, in]. Cutting the outs of one matrix and the ins of the next (Megatron-LM,
    Shoeybi et al., arXiv 1909.08053) leaves every rank with a partial sum; the sum over all ranks
    is whole.
    """

    over: ShardAxis
    axis: int | None = None


Cuts = tuple[tuple[str, ShardRule], ...]  # a pattern of names, and their cut

LAYER = r"model\.layers\.\d+\."
ATTENTION = LAYER + r"self_attn\."
MLP = LAYER + r"mlp\."
EXPERT = MLP + r"experts\.(\d+)\."

DECODER_CUTS: Cuts = (
    (r"model\.embed_tokens\.weight|lm_head\.weight", ShardRule(ShardAxis.ALL, 0)),
    (r"model\.norm\.weight", ShardRule(ShardAxis.NOBODY)),
    (LAYER + r"(input|post_attention)_layernorm\.weight", ShardRule(ShardAxis.NOBODY)),
    (ATTENTION + r"q_proj\.(weight|bias)", ShardRule(ShardAxis.HEADS, 0)),
    (ATTENTION + r"[kv]_proj\.(weight|bias)", ShardRule(ShardAxis.KV_HEADS, 0)),
    (ATTENTION + r"o_proj\.weight", ShardRule(ShardAxis.HEADS, 1)),
    (ATTENTION + r"o_proj\.bias", ShardRule(ShardAxis.FIRST_OF_HEADS)),
    (MLP + r"gate\.weight", ShardRule(ShardAxis.NOBODY)),
    (EXPERT + r"(gate|up)_proj\.weight", ShardRule(ShardAxis.EXPERTS, 0)),
    (EXPERT + r"down_proj\.weight", ShardRule(ShardAxis.EXPERTS, 1)),
    (MLP + r"(shared_expert\.)?(gate|up)_proj\.(weight|bias)", ShardRule(ShardAxis.ALL, 0)),
    (MLP + r"(shared_expert\.)?down_proj\.weight", ShardRule(ShardAxis.ALL, 1)),
    (MLP + r"down_proj\.bias", ShardRule(ShardAxis.FIRST_OF_ALL)),
)
HEAD_NORM_CUTS: Cuts = ((ATTENTION + r"[qk]_norm\.weight", ShardRule(ShardAxis.NOBODY)),)
