"""Quantised checkpoints: which tensors, under which names, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastslow.engine.checkpoint.fused import FLOATS, IN_TURN, STACKED_METHOD, Expected
from fastslow.engine.checkpoint.published.layout import METHODS
from fastslow.engine.host.files import is_file, read_object, shown
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.ops import QuantLinear, ReadQuant, no_int8
from fastslow.engine.model.tensors import Shapes, tensor_shapes

DESCRIPTION = "quant_model_description.json"
METHOD = "ascend"
KV_TYPE = "C8"


class QuantKind(StrEnum):
    """Kind of quantisation of a matrix, as a description spells it."""

    FLOAT = "FLOAT"
    DYNAMIC = "W8A8_DYNAMIC"  # activations per token, as they come
    STATIC = "W8A8"  # activations by a scale and an offset known beforehand


@dataclass(frozen=True, slots=True)
class Scheme:
    """kinds: of the tensors `X.weight` that are not FLOAT. kv: keys and values are meant to be kept in int8."""

    kinds: Mapping[str, QuantKind]
    kv: bool = False

    @classmethod
    def from_folder(cls, folder: Path) -> Scheme | None:
        """Read the folder's scheme; None where it is not quantised. ValueError for what is not supported."""
        raw = read_object(folder / "config.json")
        section = raw.get("quantization_config")
        described = _description(folder)
        if section is not None:
            method = section.get("quant_method") if isinstance(section, dict) else section
            stacked = method == STACKED_METHOD and IN_TURN in ModelConfig.from_json(raw).fused
            if stacked or method in tuple(METHODS):
                return None  # `fused_tensors` or `published_layouts` reads them
            if method != METHOD:
                raise ValueError(
                    f"{folder / 'config.json'}: quantization_config has quant_method {shown(method)}, "
                    f"which is not one of the known {', '.join((*METHODS, METHOD))}"
                )
            if not described.is_file():
                raise ValueError(
                    f"{folder} has a quantization_config, but no {DESCRIPTION} that says which "
                    "tensors are quantised"
                )
        if not described.is_file():
            return None
        return cls.from_description(read_object(described), described)

    @classmethod
    def from_description(cls, raw: Mapping[str, Any], path: Path) -> Scheme:
        kinds = {}
        for name, value in raw.items():
            if not name.endswith(".weight") or value == QuantKind.FLOAT:
                continue
            if value not in (QuantKind.DYNAMIC, QuantKind.STATIC):
                raise ValueError(
                    f"{path}: tensor {name:.99} is {shown(value)}, which is not one of the known "
                    f"{', '.join(QuantKind)}"
                )
            kinds[name] = QuantKind(value)
        return cls(kinds, raw.get("kv_cache_type") == KV_TYPE)

    @property
    def sentence(self) -> str:
        """Text for the log: what the scheme covers, and what does not run as it stands."""
        static = sum(kind is QuantKind.STATIC for kind in self.kinds.values())
        parts = [f"{len(self.kinds)} matrices in int8"]
        if static:
            parts.append(f"the inputs of {static} static ones in int8 per token, which is finer")
        return ", ".join(parts)

    def kind(self, name: str) -> QuantKind:
        return self.kinds.get(name, QuantKind.FLOAT)

    def renamed(self, name: Callable[[str], str]) -> Scheme:
        return replace(self, kinds={name(known): kind for known, kind in self.kinds.items()})

    def only(self, kept: Callable[[str], bool]) -> Scheme:
        return replace(self, kinds={n: kind for n, kind in self.kinds.items() if kept(n)})


def _description(folder: Path) -> Path:
    """The file that describes a folder. Older exporters put the kind into its name."""
    usual = folder / DESCRIPTION
    if is_file(usual):
        return usual
    others = sorted(folder.glob("quant_model_description_*.json"))
    if len(others) > 1:
        raise ValueError(
            f"{folder} has {others[0].name} and {others[1].name}: one must describe it"
        )
    return others[0] if others else usual


def expected_tensors(config: ModelConfig, scheme: Scheme | None) -> dict[str, Expected]:
    """All that a checkpoint may hold, in file order. ValueError for a scheme that does not fit the model."""
    shapes = tensor_shapes(config)
    found = {name: Expected((shape,)) for name, shape in shapes.items()}
    if scheme is None:
        return found
    tied = config.tie_word_embeddings
    own = scheme.only(lambda name: not (tied and name == "lm_head.weight"))
    return found | quantised_tensors(shapes, own) | _kv(config, shapes)


def quantised_tensors(shapes: Shapes, scheme: Scheme | None) -> dict[str, Expected]:
    """Of tensors of these shapes: those that the scheme quantises, and what belongs to them."""
    found: dict[str, Expected] = {}
    for name, kind in scheme.kinds.items() if scheme is not None else ():
        if name not in shapes:
            raise ValueError(
                f"tensor {name:.99} is described as {kind}, but the model has no such one"
            )
        if len(shapes[name]) != 2 or name.endswith(".mlp.gate.weight"):
            raise ValueError(f"tensor {name} is described as {kind}, but must be FLOAT")
        found |= _quantised(name, shapes[name], kind)
        bias = f"{name.removesuffix('weight')}bias"
        if kind is QuantKind.STATIC and bias in shapes:  # it lies in quant_bias
            found[bias] = Expected((shapes[bias],), optional=True)
    return found


def _quantised(name: str, shape: tuple[int, ...], kind: QuantKind) -> dict[str, Expected]:
    prefix, outputs = name.removesuffix(".weight"), shape[0]
    per_output = ((outputs, 1), (outputs,))
    found = {
        name: Expected((shape,), ("I8",)),
        f"{prefix}.weight_scale": Expected(per_output, optional=kind is QuantKind.STATIC),
        f"{prefix}.weight_offset": Expected(per_output, (*FLOATS, "I8"), optional=True),
    }
    if kind is QuantKind.STATIC:
        found |= {
            f"{prefix}.deq_scale": Expected(((outputs,),), ("F32", "I64")),
            f"{prefix}.quant_bias": Expected(((outputs,),), ("I32",)),
            f"{prefix}.input_scale": Expected(((1,),)),
            f"{prefix}.input_offset": Expected(((1,),), (*FLOATS, "I8")),
        }
    return found


def _kv(config: ModelConfig, shapes: Shapes) -> dict[str, Expected]:
    mixer = config.layers[0].mixer
    if not isinstance(mixer, GroupedAttention):
        return {}
    width = mixer.key_width
    return {
        f"{name.removesuffix('.weight')}.kv_cache_{part}": Expected(
            ((width,), (width, 1)), optional=True
        )
        for name in shapes
        if name.endswith(("k_proj.weight", "v_proj.weight"))
        for part in ("scale", "offset")
    }


Raw = Callable[[str], "Tensor | None"]


@dataclass(frozen=True, slots=True)
class QuantReader:
    """raw: reads a tensor as the file holds it, None where it lacks one. own: matrices that other methods have in int8."""

    raw: Raw
    scheme: Scheme
    own: ReadQuant = no_int8

    def linear(self, name: str) -> QuantLinear | None:
        """The matrix `X.weight` in int8; None where it is float. ValueError for bad scales, and for offsets."""
        kind = self.scheme.kind(name)
        if kind is QuantKind.FLOAT:
            return self.own(name)
        prefix = name.removesuffix(".weight")
        offset = self.raw(f"{prefix}.weight_offset")
        if offset is not None and bool(offset.float().count_nonzero()):
            raise ValueError(f"tensor {prefix}.weight_offset must be 0: int8 weights are symmetric")
        weight = self._must(name)
        if kind is QuantKind.DYNAMIC:
            scale = self._must(f"{prefix}.weight_scale").float().flatten()
        else:
            scale = self._dequantising(prefix) / self._must(f"{prefix}.input_scale").float()
        if not bool((scale.isfinite() & (scale >= 0)).all()):
            raise ValueError(f"the scales of tensor {name} must be finite numbers of at least 0")
        return QuantLinear(weight, scale)

    def read(self, name: str) -> Tensor:
        """Any tensor of a float checkpoint, multiplied out where it is quantised."""
        if (matrix := self.linear(name)) is not None:
            return matrix.dequantised()
        found = self.raw(name)
        return self._folded_bias(name) if found is None else found

    def _folded_bias(self, name: str) -> Tensor:
        """Return the bias of a static matrix: its quant_bias, less what the inputs' offset adds to it."""
        prefix = name.removesuffix(".bias")
        weight = self._must(f"{prefix}.weight")
        offset = self._must(f"{prefix}.input_offset").float()
        whole = self._must(f"{prefix}.quant_bias").double() + offset * weight.double().sum(-1)
        return (whole * self._dequantising(prefix)).float()

    def _dequantising(self, prefix: str) -> Tensor:
        """input_scale * weight_scale, float32 [O]; some exports keep its bits in an int64."""
        scale = self._must(f"{prefix}.deq_scale")
        if scale.dtype == torch.int64:
            return scale.to(torch.int32).view(torch.float32)
        return scale.float()

    def _must(self, name: str) -> Tensor:
        found = self.raw(name)
        if found is None:
            raise ValueError(f"the checkpoint lacks tensor {name}")
        return found
