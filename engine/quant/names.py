"""The tensors of a quantised checkpoint: names, shapes and dtypes, from a config and a scheme."""

from __future__ import annotations

from dataclasses import dataclass

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.names import Shapes, tensor_shapes
from fastslow.engine.quant.scheme import Kind, Scheme

FLOATS = ("BF16", "F16", "F32", "F64")  # as safetensors spells them


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor: the shapes and dtypes it may have, and whether it may be missing."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...] = FLOATS
    optional: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The usual one."""
        return self.shapes[0]


def expected_tensors(config: ModelConfig, scheme: Scheme | None) -> dict[str, Expected]:
    """All that a checkpoint may hold, in file order.

    Raises ValueError for a scheme that names what the model does not have, or quantises what is no
    matrix of int8.
    """
    shapes = tensor_shapes(config)
    found = {name: Expected((shape,)) for name, shape in shapes.items()}
    if scheme is None:
        return found
    tied = config.tie_word_embeddings
    own = scheme.without(lambda name: tied and name == "lm_head.weight")
    return found | quantised_tensors(shapes, own) | _kv(config, shapes)


def quantised_tensors(shapes: Shapes, scheme: Scheme | None) -> dict[str, Expected]:
    """Of tensors of these shapes: those that the scheme quantises, and what belongs to them.

    Raises ValueError as `expected_tensors` does.
    """
    found: dict[str, Expected] = {}
    for name, kind in scheme.kinds.items() if scheme is not None else ():
        if name not in shapes:
            raise ValueError(f"tensor {name} is described as {kind}, but the model has no such one")
        if len(shapes[name]) != 2 or name.endswith(".mlp.gate.weight"):
            raise ValueError(f"tensor {name} is described as {kind}, but must be FLOAT")
        found |= _quantised(name, shapes[name], kind)
        bias = f"{name.removesuffix('weight')}bias"
        if kind is Kind.STATIC and bias in shapes:  # it lies in quant_bias
            found[bias] = Expected((shapes[bias],), optional=True)
    return found


def _quantised(name: str, shape: tuple[int, ...], kind: Kind) -> dict[str, Expected]:
    prefix, outputs = name.removesuffix(".weight"), shape[0]
    per_output = ((outputs, 1), (outputs,))
    found = {
        name: Expected((shape,), ("I8",)),
        f"{prefix}.weight_scale": Expected(per_output, optional=kind is Kind.STATIC),
        f"{prefix}.weight_offset": Expected(per_output, (*FLOATS, "I8"), optional=True),
    }
    if kind is Kind.STATIC:
        found |= {
            f"{prefix}.deq_scale": Expected(((outputs,),), ("F32", "I64")),
            f"{prefix}.quant_bias": Expected(((outputs,),), ("I32",)),
            f"{prefix}.input_scale": Expected(((1,),)),
            f"{prefix}.input_offset": Expected(((1,),), (*FLOATS, "I8")),
        }
    return found


def _kv(config: ModelConfig, shapes: Shapes) -> dict[str, Expected]:
    width = config.kv_heads * config.head_dim
    return {
        f"{name.removesuffix('.weight')}.kv_cache_{part}": Expected(
            ((width,), (width, 1)), optional=True
        )
        for name in shapes
        if name.endswith(("k_proj.weight", "v_proj.weight"))
        for part in ("scale", "offset")
    }
