"""A mark for tests that need the compiled kernels, and how far these may be from the exact numbers."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import texts
from torch import Tensor

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.compiled import structures
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import Model
from fastslow.engine.model.ops import Linear, Ops

# A router's near tie would change more than any rounding.
ALL_CHOSEN = {family: {"num_experts_per_tok": 8} for family in ("qwen3_moe", "gpt_oss")}


def wanted() -> bool:
    """True where kernels should run on this machine. Where they should and do not, tests fail and do not skip."""
    if library.level() == "off":
        return False
    if library.prebuilt(library.level()):
        return True
    try:
        library.find_compiler()
    except RuntimeError:
        return False
    return True


compiled = pytest.mark.skipif(not wanted(), reason="no compiler, or the kernels are switched off")


def check_error(model: Model, plain: Path, tokens: Sequence[int], weights: bool, patch: pytest.MonkeyPatch) -> None:
    """A model's error is that of products of its weights, in float64, whose inputs are rounded to int8; where
    these, or the weights, were twice as coarse, it would be about twice that. weights: they are rounded, too."""
    exactly, product = load_model(plain, "float64", "cpu"), Ops._product

    def rounded(ops: Ops, x_TI: Tensor, matrix: Linear) -> Tensor:
        weight_OI = _in_int8(matrix.weight) if weights else matrix.weight
        return product(ops, _in_int8(x_TI), matrix._replace(weight=weight_OI))

    exact = texts.logits(exactly, tokens).log_softmax(-1)
    found = texts.logits(model, tokens).double().log_softmax(-1)
    patch.setattr(Ops, "_product", rounded)
    coarse = texts.logits(exactly, tokens).log_softmax(-1)
    error, usual = ((x - exact).square().mean().sqrt() for x in (found, coarse))
    assert 0 < error < 1.3 * usual, f"{error:.4f} where {usual:.4f} is usual"


def _in_int8(x: Tensor) -> Tensor:
    """With a scale for each 32."""
    blocks = x.unflatten(-1, (-1, 32))
    step = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    rounded: Tensor = (blocks / step).round() * step
    return rounded.flatten(-2)


def made(model: CpuDecoder, **changes: Any) -> None:
    """Make a model on the kernels, with changes to its shape or all its layers, and let it go."""
    layers = (structures.CLayer * len(model.layers))(*map(model._layer, model.layers))
    shape = model._shape()
    shape.embedding_file = -1
    for field, value in changes.items():
        for changed in [shape] if hasattr(shape, field) else layers:
            setattr(changed, field, value)
    handle = ctypes.c_void_p()
    failed = library.kernels().fs_model_new(ctypes.byref(shape), layers, ctypes.byref(handle))
    library.check(failed, "making the model")
    library.kernels().fs_model_delete(handle.value)
