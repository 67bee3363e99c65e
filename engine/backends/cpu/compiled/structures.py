"""The kernels' structures as ctypes sees them, mirrors of those in the kernels' headers.

ctypes cuts whole numbers that do not fit: these refuse them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

HALVES: dict[Any, int] = {c_int32: 1 << 31, c_int64: 1 << 63}


def _check_ranges(numbers: dict[str, int], halves: Iterable[tuple[str, int]]) -> None:
    """ValueError for a number that is not in -half..half - 1; one that is missing is 0."""
    for name, half in halves:
        if not -half <= (number := numbers.get(name, 0)) < half:
            raise ValueError(f"{name}={number} must be in {-half}..{half - 1}")


class Int32(c_int32):
    @classmethod
    def from_param(cls, value: Any) -> c_int32:
        _check_ranges({"argument": operator.index(value)}, [("argument", HALVES[c_int32])])
        return c_int32(value)


class Int64(c_int64):
    @classmethod
    def from_param(cls, value: Any) -> c_int64:
        _check_ranges({"argument": operator.index(value)}, [("argument", HALVES[c_int64])])
        return c_int64(value)


class Checked(Structure):
    """A structure that is made with numbers which its fields hold."""

    def __init__(self, *values: Any, **fields: Any) -> None:
        names, whole = _declared(type(self))
        fields.update(zip(names, values))
        _check_ranges(fields, whole)
        super().__init__(**fields)


@cache
def _declared(structure: type[Checked]) -> tuple[list[str], list[tuple[str, int]]]:
    """All fields; and those that are whole numbers, with the number from which each is cut."""
    declared = [(field[0], field[1]) for field in structure._fields_]
    return [name for name, _ in declared], [(n, HALVES[k]) for n, k in declared if k in HALVES]


def _fields(*groups: tuple[Any, str]) -> list[tuple[str, Any]]:
    """Every type with the names of the members that have it."""
    return [(name, kind) for kind, names in groups for name in names.split()]


class CMatrix(Checked):
    _fields_ = _fields((c_void_p, "tiles bias"), (c_int32, "format inputs outputs unused"))


class CLayer(Checked):
    _fields_ = _fields(
        (c_void_p, "attention_norm mlp_norm attention_post_norm mlp_post_norm"),
        (c_void_p, "query_norm key_norm sink_logits sink_keys sink_values"),
        (c_int32, "window rope_at mixer head_norms heads kv_heads head_dim value_dim"),
        (c_float, "score_scale residual_scale"),
        (CMatrix, "queries keys values gates out gate_up down router"),
        (c_void_p, "router_scale choice_bias"),
        (CMatrix, "expert_gate_up expert_down"),
        (c_int64, "expert_bytes"),
        (CMatrix, "mixed z rates"),
        (c_void_p, "conv decay dt_bias value_norm"),
        (c_void_p, "router_norm expert_norm dense_post_norm expert_post_norm layer_scale"),
        (c_void_p, "token_norm"),
        (CMatrix, "token_projection token_gate token_up"),
        (c_int32, "token_at values_normed"),
        (CMatrix, "absorb expand"),
        (c_float, "latent_eps"),
        (c_int32, "index_most index_heads index_dim"),
        (c_float, "index_eps"),
        (CMatrix, "index_queries index_keys"),
        (c_void_p, "index_norm index_bias"),
        (c_void_p, "attention_mix mlp_mix streams_norm"),
    )


class CRecurrence(Checked):
    _fields_ = _fields(
        (c_int32, "channels kernel key_heads value_heads key_dim value_dim tiled"), (c_float, "eps")
    )


class CShape(Checked):
    _fields_ = _fields(
        (c_int32, "layers hidden neurons vocabulary"),
        (c_int32, "experts chosen expert_neurons router router_normed"),
        (c_int32, "router_groups kept_groups group_best activation"),
        (
            c_float,
            "router_factor router_eps swiglu_alpha swiglu_limit embedding_scale score_cap logit_cap",
        ),
        (c_int32, "sinks"),
        (c_float, "eps"),
        (c_int32, "shared_gate angles token_width token_inputs"),
        (c_void_p, "token_projection_norm"),
        (CRecurrence, "recurrence"),
        (c_int32, "embedding_format"),
        (c_void_p, "embedding"),
        (c_int64, "embedding_at"),
        (c_int32, "embedding_file embedding_rows embedding_tiles"),
        (c_void_p, "norm"),
        (CMatrix, "head screen"),
        (c_void_p, "screen_norms"),
        (CMatrix, "fuse entry"),
        (c_void_p, "embedding_norm hidden_norm"),
        (c_int32, "level normed_residual normed_output hidden_first entry_width"),
        (c_void_p, "merge_mix"),
        (c_int32, "stream_rounds"),
        (c_float, "streams_eps merge_eps"),
    )


class StepArgs(Checked):
    _fields_ = _fields(
        (c_int32, "threads rows requests outputs seen_rows features kv_format"),
        (c_int64, "slot_count tail_count"),
        (
            c_void_p,
            "tokens slots groups cos sin query_scale starts contexts context_lengths chains",
        ),
        (c_void_p, "tails tail_starts tail_lengths keys values wanted only_best best logits"),
        (c_void_p, "seen feature_layers feature_values fused hidden"),
        (c_int64, "places spots"),
        (c_void_p, "running parents before ring_rows passed"),
        (c_int64, "before_size passed_size"),
        (c_void_p, "states token_rows windows"),
        (c_int64, "window_count"),
    )


class DraftArgs(Checked):
    _fields_ = _fields(
        (c_int32, "threads requests rows width depth most"),
        (c_void_p, "contexts fresh after features nodes least counts tokens parents scores"),
    )


class CPlaces(Checked):
    _fields_ = _fields(
        (c_void_p, "tokens order buckets"),
        (c_int64, "token_count order_count"),
        (c_int32, "ids"),
    )
