"""The tensors of a checkpoint: their names, shapes, and how ranks cut them."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple


class ShardAxis(Enum):
    """Ranks that share a tensor's cut axis, and the unit that is cut."""

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
    """Cut of a tensor [out, in] among ranks; axis: None where it is not cut.

    The outs of one matrix are cut and the ins of the next (Megatron-LM, Shoeybi et al., arXiv 1909.08053):
    every rank has a partial sum, and the sum over all ranks is whole."""

    over: ShardAxis
    axis: int | None = None


WHOLE = ShardRule(ShardAxis.NOBODY)


class TensorSpec(NamedTuple):
    """A tensor that a checkpoint holds. expert: the number of the routed expert that it belongs to."""

    name: str
    shape: tuple[int, ...]
    rule: ShardRule = WHOLE
    expert: int | None = None


def linear(
    prefix: str,
    rows: int,
    columns: int,
    bias: bool,
    rule: ShardRule = WHOLE,
    bias_rule: ShardRule | None = None,
    expert: int | None = None,
) -> Iterator[TensorSpec]:
    """A matrix [rows, columns] and its bias [rows], cut alike where `bias_rule` is None."""
    yield TensorSpec(f"{prefix}.weight", (rows, columns), rule, expert)
    if bias:
        yield TensorSpec(f"{prefix}.bias", (rows,), bias_rule or rule, expert)
