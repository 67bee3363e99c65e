"""Quantised checkpoints as they are published: `quantization_config` of config.json names the method, and the files say
which matrices are quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastslow.engine.checkpoint.fused import Expected, Facts, Slices
from fastslow.engine.checkpoint.published.awq import Awq
from fastslow.engine.checkpoint.published.compressed import Compressed
from fastslow.engine.checkpoint.published.fp8 import Fp8
from fastslow.engine.checkpoint.published.gptq import Gptq
from fastslow.engine.checkpoint.published.grouped import Grouped, q8_0_rows
from fastslow.engine.checkpoint.published.reader import NEAREST, Matrix, Reader, known
from fastslow.engine.host.files import about, read_object
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
    """A matrix X.weight [O, I] that other tensors stand for. form: the kernel format that holds it, or nearly; None
    where there is none. facts: of what stands for it, by the ends of names."""

    stem: str  # "X."
    shape: tuple[int, int]
    reader: Reader
    tensors: Mapping[str, Expected]
    facts: Facts

    @property
    def parts(self) -> tuple[str, ...]:
        return (f"{self.stem}weight",)

    @property
    def form(self) -> str | None:
        found = self.reader.form(self.facts, *self.shape)
        return None if found == NEAREST and self.shape[1] % 32 else found

    def matrix(self, slices: Slices) -> Matrix:
        """Its numbers; ValueError in one sentence for those that cannot be."""
        raw = {end: slices(self.stem + end)[...] for end in self.facts}
        if "bias" in raw and raw["bias"].count_nonzero():
            raise ValueError(f"tensor {self.stem}bias must be zeros: the model has no such one")
        if not all(x.float().isfinite().all() for x in raw.values() if x.is_floating_point()):
            raise ValueError(f"the numbers of tensor {self.parts[0]} must be finite")
        try:
            return self.reader.matrix(raw, *self.shape)
        except (ValueError, RuntimeError) as error:  # torch's, where shapes do not fit each other
            raise ValueError(f"tensor {self.parts[0]}: {error}") from None

    def linear(self, slices: Slices) -> QuantLinear | None:
        found = self.matrix(slices) if self.form == "INT8" else None
        return found if isinstance(found, QuantLinear) else None

    def read(self, name: str, slices: Slices) -> Tensor:
        found = self.matrix(slices)
        return found if isinstance(found, Tensor) else found.dequantised()

    def read_packed(self, name: str, slices: Slices) -> Tensor:
        found = self.matrix(slices)
        if isinstance(found, Grouped) and self.form != NEAREST:
            return found.blocks()
        return q8_0_rows(found if isinstance(found, Tensor) else found.dequantised())


def published_reader(folder: Path) -> Reader | None:
    """Return the reader of the folder's matrices; None where config.json names no method that is known. ValueError in
    one sentence for an option that is not."""
    path = folder / "config.json"
    section = read_object(path).get("quantization_config")
    method = section.get("quant_method") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(method, str) or method not in METHODS:
        return None
    with about(f"{path}: quantization_config of {method}"):
        return METHODS[method](section)


def published_layouts(folder: Path, config: ModelConfig, facts: Facts) -> Iterator[Published]:
    """The matrices that the files have as `quantization_config` says."""
    if (reader := published_reader(folder)) is None:
        return
    shapes = tensor_shapes(config) | mtp_shapes(config)
    for name, shape in shapes.items():
        if len(shape) != 2 or any(size % 8 for size in shape) or not name.endswith(".weight"):
            continue  # no method has parts of words
        stem, ends = name.removesuffix("weight"), reader.tensors(shape[0], shape[1])
        there = {end: facts[stem + end] for end in ends if stem + end in facts}
        if all(ends[end].optional or end == "weight" for end in there):
            continue
        if f"{stem}bias" not in shapes and f"{stem}bias" in facts:  # older exports have zeros there
            ends["bias"], there["bias"] = Expected((shape[:1],)), facts[f"{stem}bias"]
        tensors = {stem + end: expected for end, expected in ends.items()}
        yield Published(stem, (shape[0], shape[1]), reader, tensors, there)
