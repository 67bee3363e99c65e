"""How each tensor is cut where several ranks share a model, by its name.

Matrices are [out, in]. Cutting the outs of one matrix and the ins of the next (Megatron-LM, Shoeybi
et al., arXiv 1909.08053) leaves every rank with a partial sum; all ranks' sums together are whole.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple


class Over(Enum):
    """Which ranks share a tensor's cut axis, and in units of what."""

    NOBODY = "every rank holds all of it"
    ALL = "all ranks"
    HEADS = "the ranks of one replica of attention, whole query heads each"
    KV_HEADS = "the ranks of one replica of attention, whole KV heads each"
    EXPERTS = "the ranks that hold the expert's group; the others hold nothing of it"
    FIRST_OF_ALL = "held by the first rank alone, since it is added once"
    FIRST_OF_HEADS = "held by the first rank of each replica of attention alone"


class Cut(NamedTuple):
    """axis: of the tensor, None where it is not cut."""

    over: Over
    axis: int | None = None


_LAYER = r"model\.layers\.\d+\."
_ATTENTION = _LAYER + r"self_attn\."
_MLP = _LAYER + r"mlp\."

CUTS: tuple[tuple[str, Cut], ...] = (
    (r"model\.embed_tokens\.weight|lm_head\.weight", Cut(Over.ALL, 0)),
    (r"model\.norm\.weight", Cut(Over.NOBODY)),
    (_LAYER + r"(input|post_attention)_layernorm\.weight", Cut(Over.NOBODY)),
    (_ATTENTION + r"q_proj\.(weight|bias)", Cut(Over.HEADS, 0)),
    (_ATTENTION + r"[kv]_proj\.(weight|bias)", Cut(Over.KV_HEADS, 0)),
    (_ATTENTION + r"o_proj\.weight", Cut(Over.HEADS, 1)),
    (_ATTENTION + r"o_proj\.bias", Cut(Over.FIRST_OF_HEADS)),
    (_MLP + r"gate\.weight|" + _MLP + r"router_scale", Cut(Over.NOBODY)),
    (_MLP + r"experts\.\d+\.(gate|up)_proj\.weight", Cut(Over.EXPERTS, 0)),
    (_MLP + r"experts\.\d+\.down_proj\.weight", Cut(Over.EXPERTS, 1)),
    (_MLP + r"(shared_expert\.)?(gate|up)_proj\.(weight|bias)", Cut(Over.ALL, 0)),
    (_MLP + r"(shared_expert\.)?down_proj\.weight", Cut(Over.ALL, 1)),
    (_MLP + r"down_proj\.bias", Cut(Over.FIRST_OF_ALL)),
)

_COMPILED = tuple((re.compile(pattern), cut) for pattern, cut in CUTS)
_EXPERT = re.compile(_MLP + r"experts\.(\d+)\.")


def cut_of(name: str) -> Cut:
    """How the tensor of this name is cut.

    Raises:
        ValueError: no rule knows it.
    """
    for pattern, cut in _COMPILED:
        if pattern.fullmatch(name):
            return cut
    raise ValueError(f"tensor {name} has no rule by which several ranks could share it")


def expert_of(name: str) -> int:
    """The expert's number in a tensor's name."""
    found = _EXPERT.match(name)
    if found is None:
        raise ValueError(f"tensor {name} is none of an expert")
    return int(found.group(1))
