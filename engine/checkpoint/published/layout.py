"""Quantised checkpoints as they are published: `quantization_config` of config.json names the method, and the files say
which matrices are quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fastslow.engine.checkpoint.fused import Expected, Facts, ReadTensor
from fastslow.engine.checkpoint.published.awq import Awq
from fastslow.engine.checkpoint.published.compressed import Compressed
from fastslow.engine.checkpoint.published.fp8 import Fp8
from fastslow.engine.checkpoint.published.gptq import Gptq
from fastslow.engine.checkpoint.published.grouped import Grouped, q8_0_rows
from fastslow.engine.checkpoint.published.reader import NEAREST, Matrix, Reader, known
from fastslow.engine.host.files import read_object
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import QuantLinear
from fastslow.engine.model.tensors import mtp_shapes, tensor_shapes

METHODS: dict[str, Callable[[Mapping[str, Any]], Reader]] = {
    "gptq": lambda section: Gptq(**known(Gptq, section)),
    "awq": lambda section: Awq(**known(Awq, section)),
    "compressed-tensors": Compressed.of,
    "fp8": lambda section: Fp8(**known(Fp8, section)),
}


@dataclass(frozen=True, slots=True)
class Published:
    """A `Layout` of one matrix X.weight [O, I]. facts: of its tensors that are there, by the ends of their names."""

    stem: str  # "X."
    shape: tuple[int, int]
    reader: Reader
    tensors: Mapping[str, Expected]
    facts: Facts

    @classmethod
    def of(cls, stem: str, shape: tuple[int, int], reader: Reader, biased: bool) -> Published:
        """biased: the model itself has X.bias; else files may have one of zeros, as older exports do."""
        ends = reader.tensors(*shape)
        if not biased:
            ends["bias"] = Expected(((shape[0],),), optional=True)
        return cls(stem, shape, reader, {stem + end: x for end, x in ends.items()}, {})

    @property
    def parts(self) -> tuple[str, ...]:
        return (f"{self.stem}weight",)

    def bind(self, facts: Facts) -> Published:
        mine = {n.removeprefix(self.stem): facts[n] for n in self.tensors if n in facts}
        return replace(self, facts=mine)

    @property
    def form(self) -> str | None:
        found = self.reader.form(self.facts, *self.shape)
        return None if found == NEAREST and self.shape[1] % 32 else found

    @property
    def exact(self) -> bool:
        return self.form not in (None, NEAREST)

    def matrix(self, read: ReadTensor) -> Matrix:
        """Its numbers; ValueError in one sentence for those that cannot be."""
        raw = {end: read(self.stem + end) for end in self.facts}
        if "bias" in raw and raw["bias"].count_nonzero():
            raise ValueError(f"tensor {self.stem}bias must be zeros: the model has no such one")
        try:
            found = self.reader.matrix(raw, *self.shape)
        except ValueError as error:
            raise ValueError(f"tensor {self.parts[0]}: {error}") from None
        floats = found.scale_O if isinstance(found, QuantLinear) else found
        floats = floats.scale_OG if isinstance(floats, Grouped) else floats
        if not bool(floats.isfinite().all()):
            raise ValueError(f"tensor {self.parts[0]} has scales or weights that are not finite")
        return found

    def read(self, name: str, read: ReadTensor) -> Tensor:
        found = self.matrix(read)
        return found if isinstance(found, Tensor) else found.dequantised()

    def read_packed(self, name: str, read: ReadTensor) -> Tensor:
        found = self.matrix(read)
        if isinstance(found, Grouped) and self.exact:
            return found.blocks()
        return q8_0_rows(found if isinstance(found, Tensor) else found.dequantised())


def published_layouts(folder: Path, config: ModelConfig) -> list[Published]:
    """For every matrix of the model how its method may hold it; none where config.json names no method that is known.
    ValueError in one sentence for an option that is not."""
    path = folder / "config.json"
    section = read_object(path).get("quantization_config")
    method = section.get("quant_method") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(method, str) or method not in METHODS:
        return []
    try:
        reader = METHODS[method](section)
    except ValueError as error:
        raise ValueError(f"{path}: quantization_config of {method}: {error}") from None
    shapes = tensor_shapes(config) | mtp_shapes(config)
    stems = [(n.removesuffix("weight"), s) for n, s in shapes.items() if n.endswith(".weight")]
    return [
        Published.of(stem, (shape[0], shape[1]), reader, f"{stem}bias" in shapes)
        for stem, shape in stems
        if len(shape) == 2
    ]
