"""The compiled kernels, as ctypes sees them. The structures mirror those of its headers."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_void_p,
)
from functools import cache

from loguru import logger

from fastslow.engine.backends.cpu.build import build, level

TILE = 32
UNREADABLE = 2  # what a step gives back where a file cannot be read
PARTS = ("embed", "qkv", "attention", "out", "gate_up", "experts", "down", "head")


class CMatrix(Structure):
    _fields_ = [
        ("tiles", c_void_p),
        ("bias", c_void_p),
        ("format", c_int32),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("unused", c_int32),
    ]


class CLayer(Structure):
    _fields_ = [
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("qkv", CMatrix),
        ("out", CMatrix),
        ("gate_up", CMatrix),
        ("down", CMatrix),
        ("router", CMatrix),
        ("router_scale", c_void_p),
        ("expert_gate_up", CMatrix),
        ("expert_down", CMatrix),
        ("expert_bytes", c_int64),
    ]


class CShape(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim")),
        *((name, c_int32) for name in ("neurons", "vocabulary", "experts", "groups")),
        ("expert_neurons", c_int32),
        ("eps", c_float),
        ("embedding_format", c_int32),
        ("embedding", c_void_p),
        ("embedding_at", c_int64),
        ("embedding_file", c_int32),
        ("unused", c_int32),
        ("norm", c_void_p),
        ("head", CMatrix),
        ("screen", CMatrix),
        ("screen_norms", c_void_p),
        ("fuse", CMatrix),
        ("entry", CMatrix),
        ("embedding_norm", c_void_p),
        ("hidden_norm", c_void_p),
    ]


class StepArgs(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("threads", "rows", "requests", "outputs")),
        *((name, c_int32) for name in ("seen_rows", "features", "kv_format")),
        *((name, c_void_p) for name in ("tokens", "slots", "groups", "cos", "sin", "starts")),
        *((name, c_void_p) for name in ("contexts", "context_lengths", "chains")),
        *((name, c_void_p) for name in ("tails", "tail_starts", "tail_lengths")),
        *((name, c_void_p) for name in ("keys", "values", "wanted", "only_best", "best", "logits")),
        *((name, c_void_p) for name in ("seen", "feature_layers", "feature_values")),
        *((name, c_void_p) for name in ("fused", "hidden")),
    ]


class DraftArgs(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("threads", "requests", "width", "depth", "most")),
        *((name, c_void_p) for name in ("contexts", "fresh", "after", "features", "nodes")),
        *((name, c_void_p) for name in ("least", "counts", "tokens", "parents", "scores")),
    ]


class CPlaces(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("tokens", "order", "buckets")),
        ("ids", c_int32),
    ]


SIGNATURES = {
    "fs_model_new": (c_void_p, [POINTER(CShape), POINTER(CLayer)]),
    "fs_model_delete": (None, [c_void_p]),
    "fs_step": (c_int, [c_void_p, POINTER(StepArgs)]),
    "fs_clock": (None, [c_void_p, c_int, c_void_p]),
    "fs_experts_read": (c_int64, [c_void_p]),
    "fs_screened": (c_int, [c_void_p]),
    "fs_draft_new": (c_void_p, [POINTER(CShape), POINTER(CLayer), c_void_p, c_int, c_double]),
    "fs_draft_delete": (None, [c_void_p]),
    "fs_draft_open": (c_int64, [c_void_p, c_int64]),
    "fs_draft_fork": (c_int64, [c_void_p, c_int64, c_int64]),
    "fs_draft_close": (c_int, [c_void_p, c_int64]),
    "fs_draft_skip": (c_int, [c_void_p, c_int64, c_int64]),
    "fs_draft_read": (c_int, [c_void_p, POINTER(DraftArgs)]),
    "fs_draft_words": (c_int, [c_void_p, c_int64, c_void_p, c_void_p, c_int]),
    "fs_draft_grow": (c_int, [c_void_p, POINTER(DraftArgs)]),
    "fs_draft_advance": (c_int, [c_void_p, c_void_p, c_void_p, c_int, c_int]),
    "fs_draft_logits": (c_void_p, [c_void_p, c_int64, POINTER(c_int64)]),
    "fs_move": (
        c_int,
        [c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_int, c_int, c_int, c_int],
    ),
    "fs_find_runs": (
        None,
        [POINTER(CPlaces), c_void_p, c_int, c_int, c_int, c_int, c_void_p],
    ),
    "fs_vector_width": (c_int, []),
    "fs_dot_instructions": (c_int, []),
    "fs_read_bandwidth": (c_double, [c_void_p, c_int64, c_int]),
    "fs_tile_bytes": (c_size_t, [c_int, c_int]),
    "fs_pack": (None, [c_int, c_void_p, c_void_p, c_int, c_int]),
    "fs_pack_int8": (None, [c_void_p, c_void_p, c_void_p, c_int, c_int]),
    "fs_pack_q4_1": (None, [c_void_p, c_void_p, c_int, c_int]),
    "fs_product": (c_int, [c_int, c_void_p, c_int, c_int, c_void_p, c_int, c_void_p]),
}


@cache
def kernels() -> ctypes.CDLL:
    """The library for this chip, compiled on first use.

    Raises:
        RuntimeError: it cannot be compiled or loaded; the sentence says what to do.
    """
    try:
        library = ctypes.CDLL(str(build(level())))
    except OSError as error:
        raise RuntimeError(f"the CPU kernels could not be loaded: {error}") from None
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


@cache
def available() -> bool:
    """Whether the kernels run here; if not, one line in the log says what that costs and why."""
    if level() == "off":
        logger.info(
            "the CPU kernels are switched off, plain torch runs instead, several times slower"
        )
        return False
    try:
        kernels()
    except RuntimeError as error:
        logger.warning(
            "plain torch runs instead of the CPU kernels, several times slower: {}", error
        )
        return False
    return True
