"""How a weight format is asked of fastslow."""

from __future__ import annotations

from typing import TypedDict

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("int8", "int4")
KV8 = "+kv8"


class Options(TypedDict, total=False):
    """Arguments of `LLM`."""

    dtype: str
    quantization: str
    kv_dtype: str


def options_of(format: str) -> Options:
    """Arguments of `LLM`: a dtype, a quantization, or neither for "auto".

    With "+kv8" behind it keys and values are kept in int8.
    """
    if format.endswith(KV8):
        return {**options_of(format.removesuffix(KV8)), "kv_dtype": "int8"}
    if format in QUANTIZATIONS:
        return {"quantization": format}
    return {} if format == "auto" else {"dtype": format}


def kv_dtype(format: str) -> torch.dtype:
    """What keys and values are kept in."""
    return DTYPES.get(format, torch.bfloat16)
