"""compressed-tensors: packed integers, and plain matrices of int8 or FP8 with their scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from fastslow.engine.checked import Params
from fastslow.engine.checkpoint.fused import Expected, Facts
from fastslow.engine.checkpoint.published.fp8 import FP8, INPUTS, Block, scaled
from fastslow.engine.checkpoint.published.grouped import Grouped, unpack
from fastslow.engine.checkpoint.published.reader import NEAREST, Matrix, Raw, form_of, known, refuse
from fastslow.engine.host.files import shown
from fastslow.engine.model.ops import QuantLinear

FORMATS = (*(f"{x}-quantized" for x in ("pack", "int", "float", "naive")), "mixed-precision")


class ConfigGroup(Params):
    """Format of one group of matrices. strategy: what shares a scale; None: as the other fields say."""

    num_bits: Literal[4, 8]
    type: Literal["int", "float"] = "int"
    strategy: Literal["tensor", "channel", "group", "block"] | None = None
    symmetric: bool = True
    group_size: int | None = Field(None, ge=-1, le=1 << 20)
    block_structure: Block | None = None

    @model_validator(mode="after")
    def _agrees(self) -> ConfigGroup:
        if self.group_size == 0:
            raise ValueError("group_size=0 must be at least 1, or -1 for all inputs")
        if self.type == "float" and self.num_bits != 8:
            raise ValueError(f"num_bits={self.num_bits} must be 8 where type is 'float'")
        for kind, field in (("group", "group_size"), ("block", "block_structure")):
            value = getattr(self, field)
            if self.strategy is not None and (value not in (None, -1)) is not (
                self.strategy == kind
            ):
                raise ValueError(f"strategy={self.strategy!r} does not go with {field}={value}")
        return self


class Compressed(Params):
    """A word has the numbers of eight or four inputs, or zero points of as many outputs, above the least number. The
    files say which matrix is of which group."""

    label: ClassVar[str] = "compressed-tensors"
    weights: tuple[ConfigGroup, ...] = Field(min_length=1, max_length=64)

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Compressed:
        groups = section.get("config_groups")
        some = list(groups.values()) if isinstance(groups, Mapping) else []
        if not all(isinstance(x, Mapping) and isinstance(x.get("weights"), Mapping) for x in some):
            raise ValueError("config_groups must be objects that each have an object weights")
        for place in (section, *some):
            refuse(place)
            form = place.get("format")
            if form is not None and form not in FORMATS:
                raise ValueError(f"format {shown(form)} is not one of {', '.join(FORMATS)}")
        return cls(weights=tuple(ConfigGroup(**known(ConfigGroup, x["weights"])) for x in some))

    def tensors(self, outputs: int, inputs: int) -> dict[str, Expected]:
        scales, packed, zeros = list[tuple[int, ...]](), [], []
        symmetric = any(group.symmetric for group in self.weights)
        stored = tuple({"int": "I8", "float": FP8}[group.type] for group in self.weights)
        for weights in self.weights:
            each, group = 32 // weights.num_bits, weights.group_size or -1
            rows, columns = weights.block_structure or (1, group if group > 0 else inputs)
            scale = (-(-outputs // rows), -(-inputs // columns))
            whole = group < 0 and weights.block_structure is None
            scales += [scale, *(((outputs,), (1,), ()) if whole else ())]
            packed.append((outputs, inputs // each))
            zeros += [(outputs // each, scale[1]), scale]
        return {
            "weight_scale": Expected(tuple(scales)),
            "weight_packed": Expected(tuple(packed), ("I32",), optional=True),
            "weight": Expected(((outputs, inputs),), stored, optional=True),
            "weight_shape": Expected(((2,),), ("I64", "I32"), optional=True),
            "weight_zero_point": Expected(tuple(zeros), ("I32", "I8"), optional=symmetric),
            **INPUTS,
        }

    def form(self, facts: Facts, outputs: int, inputs: int) -> str:
        shape = facts["weight_scale"].shape
        groups = shape[1] if len(shape) == 2 else 1
        if (packed := facts.get("weight_packed")) is not None:
            return form_of(_bits(packed.shape[1], inputs), inputs, -(-inputs // groups))
        if "weight" not in facts or facts["weight"].dtype != "I8":
            return NEAREST
        plain = groups == 1 and "weight_zero_point" not in facts
        return "INT8" if plain else form_of(8, inputs, -(-inputs // groups))

    def matrix(self, raw: Raw, outputs: int, inputs: int) -> Matrix:
        scale, zero, bits = raw["weight_scale"].float(), raw.get("weight_zero_point"), 8
        said = raw.get("weight_shape")
        if said is not None and said.tolist() != [outputs, inputs]:
            raise ValueError(f"weight_shape {said.tolist()} must be {[outputs, inputs]}")
        if (words := raw.get("weight_packed")) is not None:
            bits = _bits(words.shape[1], inputs)
            numbers = unpack(words, bits)
        elif (weight := raw.get("weight")) is None:
            raise ValueError("weight_scale has neither weight_packed nor weight beside it")
        elif weight.dtype != torch.int8:
            block = next((x.block_structure for x in self.weights if x.block_structure), None)
            return scaled(weight, scale, block if scale.shape != (outputs, 1) else None)
        elif zero is None and (scale.dim() < 2 or scale.shape[1] == 1):
            return QuantLinear(weight, scale.flatten().expand(outputs).contiguous())
        else:
            numbers = weight.view(torch.uint8) ^ 128
        scale = scale if scale.dim() == 2 else scale.reshape(-1, 1)
        if len(scale) not in (1, outputs) or inputs % scale.shape[1]:
            raise ValueError(f"weight_scale {list(scale.shape)} is none of equal groups of inputs")
        scale = scale.expand(outputs, -1)
        if zero is None:
            zeros = torch.full(scale.shape, 1 << bits - 1, dtype=torch.uint8)
        elif zero.dtype == torch.int32:
            zeros = unpack(zero.T, bits).T.contiguous()
        else:
            zeros = zero.view(torch.uint8) + (1 << bits - 1)
        if all(x.symmetric for x in self.weights) and (zeros != 1 << bits - 1).any():
            raise ValueError("weight_zero_point has other numbers than 0, but symmetric is true")
        if zeros.shape != scale.shape:
            raise ValueError(f"weight_zero_point is none of {list(scale.shape)} groups")
        return Grouped(numbers, scale, zeros, bits, inputs // scale.shape[1])


def _bits(words: int, inputs: int) -> int:
    return 8 if 4 * words >= inputs else 4
