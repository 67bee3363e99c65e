"""Parts of all writers of GGUF files: headers by fields of config.json, experts in one tensor, types of tensors."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor, stack

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(.*)")
Pick = Callable[[str, tuple[int, ...]], Kind]
Change = Callable[[gguf.GGUFWriter], object]


def f32(name: str, shape: tuple[int, ...]) -> Kind:
    return Kind.F32


def matrices(kind: Kind) -> Pick:
    """Matrices with rows of whole blocks in a type; the rest, and routers, in F32."""

    def pick(name: str, shape: tuple[int, ...]) -> Kind:
        block = gguf.GGML_QUANT_SIZES[kind][0]
        plain = len(shape) < 2 or shape[-1] % block or "ffn_gate_inp" in name or "bias" in name
        return Kind.F32 if plain else kind

    return pick


def add_fields(writer: gguf.GGUFWriter, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Header keys that stand for a field of config.json, by what the library calls them; those that it has."""
    for name, key in names.items():
        if config.get(name) is not None:
            getattr(writer, f"add_{key}")(config[name])


def joined(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, those of all experts of a layer in one."""
    experts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if (part := EXPERT.fullmatch(name)) is not None:
            experts[f"{part[1]}.{part[3]}"][int(part[2])] = tensor
        else:
            yield name, tensor
    for name, each in experts.items():
        yield name, stack([each[e] for e in range(len(each))])


def finish(
    writer: gguf.GGUFWriter, tensors: Iterable[tuple[str, NDArray[np.float32]]], pick: Pick = f32, rounded: Pick = f32
) -> None:
    """Write the file. pick: the type of each tensor, by its GGUF name and shape. rounded: the type that it is taken to
    before."""
    for name, values in tensors:
        kind, before = pick(name, values.shape), rounded(name, values.shape)
        values = gguf.quants.dequantize(gguf.quants.quantize(values, before), before)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
