"""A GGUF file as a checkpoint's shard: tensors under their usual names, as `safetensors.safe_open` gives them."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.host.files import about, shown
from fastslow.engine.host.gguf_file import GgufFile, GgufTensor, read_gguf
from fastslow.engine.model.config import LISTS, ROPE_FACTORS, own_layers
from fastslow.engine.model.config_json import MOST_EXPERTS
from fastslow.engine.model.family import GGUF_TOP, Fields, GgufNames, gguf_family

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}

# Where a block's float16 scale and minimum are, of the types that run as they are; MXFP4 has a power of two.
SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q6_K": (208,),
}
PIECE = 4 << 20  # bytes that are quantised again at a time
AT_ONCE = 1 << 19  # bytes to multiply out, as one row: of many gguf takes few at a time


@dataclass(frozen=True, slots=True)
class GgufSlice:
    """A tensor in a file, uint8 [..., bytes of a row], or one expert's part. order: which rows it has; None: all."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    order: Any = None

    def get_dtype(self) -> str:
        """As safetensors spells it; what is multiplied out becomes F32."""
        name = self.kind.name
        return "F32" if name not in FLOATS and multiplies_out(self.kind) else name

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def __getitem__(self, part: Any) -> Tensor:
        """A slice of each axis, or of the first; or rows by number, i64 [n]."""
        first, *others = part if isinstance(part, tuple) else (part,)
        first = first.numpy() if isinstance(first, Tensor) else first
        if len(self.shape) > 1:
            return _floats(self.rows()[first], self.kind)[(slice(None), *others)].contiguous()
        whole = _floats(self.data, self.kind)
        return (whole if self.order is None else whole[self.order])[first].contiguous()

    def rows(self) -> NDArray[np.uint8]:
        """In their order."""
        return self.data if self.order is None else self.data[self.order]


def half_split(rows: int, heads: int) -> NDArray[np.int64]:
    """The order that brings rows of a q or k projection from interleaved to half-split rotary pairs: pairs
    (2i, 2i + 1) of a head become rows i and i + D / 2."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).ravel()


@cache
def multiplies_out(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _floats(data: NDArray[np.uint8], kind: GGMLQuantizationType) -> Tensor:
    if (dtype := FLOATS.get(kind.name)) is not None:
        return torch.from_numpy(data.copy()).view(dtype)
    rows, (inputs, size) = data.reshape(-1, data.shape[-1]), GGML_QUANT_SIZES[kind]
    step = max(1, AT_ONCE // rows.shape[1])
    with np.errstate(all="ignore"):  # damaged scales; what they give is refused where it is used
        each = (
            dequantize(rows[n : n + step].reshape(1, -1), kind) for n in range(0, len(rows), step)
        )
        whole = np.concatenate([*map(np.ravel, each), np.empty(0, np.float32)], dtype=np.float32)
    return torch.from_numpy(whole).view(*data.shape[:-1], data.shape[-1] // size * inputs)


def finite_blocks(
    name: str, rows: NDArray[np.uint8], kind: GGMLQuantizationType
) -> NDArray[np.uint8]:
    """The same blocks; ValueError where a scale or a minimum is not finite."""
    blocks = rows.reshape(-1, GGML_QUANT_SIZES[kind][1])
    for at in SCALES.get(kind.name, ()):
        high = blocks[:, at + 1] & 0x7C  # a float16 whose exponent is all ones
        if (high == 0x7C).any():
            raise ValueError(f"tensor {name} has numbers that are not finite")
    return rows


def _as_q8_0(rows: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """A few rows at a time: all of them in float32 may be larger than the file."""
    step = max(1, PIECE // rows.shape[1])
    each = (dequantize(rows[n : n + step], kind) for n in range(0, len(rows), step))
    with np.errstate(all="ignore"):
        return np.concatenate([quantize(some, GGMLQuantizationType.Q8_0) for some in each])


class GgufShard:
    """ValueError for a tensor that its architecture does not have."""

    def __init__(self, path: Path) -> None:
        self._slices: dict[str, GgufSlice] = {}
        with about(path):
            for name, found in _slices(read_gguf(path)):
                if name in self._slices:
                    raise ValueError(f"tensor {name} is there twice")
                self._slices[name] = found

    def keys(self) -> list[str]:
        return list(self._slices)

    def get_slice(self, name: str) -> GgufSlice:
        return self._slices[name]

    def get_tensor(self, name: str) -> Tensor:
        return self._slices[name][:]

    def blocks(self, name: str, own: Container[str], again: bool) -> NDArray[np.uint8] | None:
        """The bytes of a matrix of blocks, [outputs, bytes of a row], heads below each other; None for one of floats.

        own: types that are given as they are. again: others are quantised again, as Q8_0; else None."""
        found = self._slices[name]
        if found.kind.name in FLOATS:
            return None
        rows = found.rows().reshape(-1, found.data.shape[-1])
        if found.kind.name in own:
            return finite_blocks(name, rows, found.kind)
        kind = GGMLQuantizationType.Q8_0
        return finite_blocks(name, _as_q8_0(rows, found.kind), kind) if again else None

    def types(self) -> dict[str, str]:
        """ggml's type of every matrix, or of one for each head."""
        return {n: s.kind.name for n, s in self._slices.items() if len(s.shape) > 1}


def _slices(file: GgufFile) -> Iterator[tuple[str, GgufSlice]]:
    _, names = gguf_family(file)
    header = names.header(file)
    for tensor in file.tensors:
        if tensor.name == ROPE_FACTORS or tensor.name in LISTS:
            continue
        place, inner = _place(tensor.name, names, header)
        shape, data = tensor.shape, tensor.data
        if (axis := names.axes.get(inner)) is not None and len(shape) >= axis:
            shape, data = (*shape[:axis], 1, *shape[axis:]), np.expand_dims(data, axis)
        each = [(place, shape, data)]
        if "*" in place:
            every = enumerate(_experts(tensor))
            each = [(place.replace("*", str(n)), shape[1:], part) for n, part in every]
        for one, size, part in each:
            if inner in names.parts:
                *before, _, ending = one.split(".")
                for end, order in names.parts[inner](size[0], header).items():
                    count = len(np.arange(size[0])[order])
                    at = ".".join((*before, end, ending))
                    yield at, GgufSlice(tensor.kind, (count, *size[1:]), part, order)
            else:
                heads = _interleaved(inner, names, header)
                order = half_split(size[0], heads) if heads else None
                yield one, GgufSlice(tensor.kind, size, part, order)


def _experts(tensor: GgufTensor) -> NDArray[np.uint8]:
    if len(tensor.shape) < 2 or len(tensor.data) > MOST_EXPERTS:
        raise ValueError(
            f"tensor {tensor.name:.99} must have an axis of at most {MOST_EXPERTS} experts"
        )
    return tensor.data


def _place(name: str, names: GgufNames, header: Fields) -> tuple[str, str]:
    """The usual name of a tensor, and what stands between its block and its ending."""
    stem, _, ending = name.rpartition(".")
    if (top := {**GGUF_TOP, **names.top}.get(stem)) and ending == "weight":
        return f"{top}.weight", stem
    if (top := names.top.get(name)) is not None:
        return top, name
    block, _, whole = name.removeprefix("blk.").partition(".")
    inner = whole.rpartition(".")[0]
    place = names.layer.get(whole, f"{names.layer[inner]}.{ending}" if inner in names.layer else "")
    if name.startswith("blk.") and block.isdecimal():
        after = int(block) - own_layers(names, header) if names.drafts else -1
        if after >= 0 and whole in names.drafts:
            return names.drafts[whole], inner
        prefix = f"model.layers.{int(block)}" if after < 0 else f"mtp.layers.{after}"
        if place:
            return f"{prefix}.{place}", inner
    raise ValueError(f"tensor {shown(name)} has no place in a {names.architecture} model")


def _interleaved(part: str, names: GgufNames, header: Fields) -> int:
    if not names.interleaved or part not in ("attn_q", "attn_k"):
        return 0
    count = header.get("attention.head_count")
    if part == "attn_k":
        count = header.get("attention.head_count_kv", count)
    return cast("int", count)
