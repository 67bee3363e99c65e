"""Writes tiny checkpoints in the layouts of GPTQ, AWQ, compressed-tensors and FP8, packed word by word as those write
them, and says what their numbers mean."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

Array = NDArray[Any]
Made = tuple[dict[str, Tensor], Tensor]  # what replaces X.weight, by its ending; what it means
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # the output in each half byte of a word, the lowest first


@dataclass(frozen=True)
class Method:
    """section: of config.json. form: the kernel format that is expected. exact: it holds the same numbers."""

    section: dict[str, Any]
    make: Callable[[Array], Made]
    form: str
    exact: bool = True


def words(values: Array, bits: int) -> Tensor:
    """int32 [rows, n * bits / 32]: along the last axis, the first value in the lowest bits."""
    each = values.reshape(len(values), -1, 32 // bits).astype(np.uint64)
    found = np.zeros(each.shape[:2], np.uint64)
    for place in range(each.shape[2]):
        found |= each[:, :, place] << np.uint64(bits * place)
    return torch.from_numpy(found.astype(np.uint32).view(np.int32))


def grouped(
    weight: Array, bits: int, of_input: Array, symmetric: bool, dtype: torch.dtype
) -> tuple[Array, Tensor, Array, Tensor]:
    """Numbers from 0 on, scales [O, G], zeros [O, G], and the weight that they mean."""
    most, groups = 2**bits - 1, int(of_input.max()) + 1
    parts = [weight[:, of_input == g] for g in range(groups)]
    if symmetric:
        scale = np.stack([np.abs(p).max(1) * 2 / most for p in parts], 1)
        zero = np.full(scale.shape, 2 ** (bits - 1))
    else:
        low = np.stack([np.minimum(p.min(1), 0) for p in parts], 1)
        low[0] = 0  # a zero point of 0, which GPTQ's older format writes as -1
        scale = (np.stack([np.maximum(p.max(1), 0) for p in parts], 1) - low) / most
        zero = np.round(-low / scale).astype(int)
    kept = torch.from_numpy(scale).to(dtype)
    exact = kept.double().numpy()[:, of_input]
    numbers = np.clip(np.round(weight / exact) + zero[:, of_input], 0, most).astype(int)
    return numbers, kept, zero, torch.from_numpy(exact * (numbers - zero[:, of_input])).float()


def gptq(bits: int, group: int, symmetric: bool = True, v2: bool = False, shuffled: bool = False) -> Method:
    def make(weight: Array) -> Made:
        inputs = weight.shape[1]
        order = np.arange(inputs) // (inputs if group < 0 else group)
        if shuffled:
            order = np.random.default_rng(inputs).permutation(order)
        numbers, scale, zero, means = grouped(weight, bits, order, symmetric, torch.float16)
        stored = zero if v2 else zero - 1 & 2**bits - 1
        return {
            "qweight": words(numbers, bits).T.contiguous(),
            "qzeros": words(stored.T, bits),
            "scales": scale.T.contiguous(),
            "g_idx": torch.from_numpy(order.astype(np.int32)),
            "bias": torch.zeros(len(weight), dtype=torch.float16),
        }, means

    section = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": shuffled}
    section |= {"sym": symmetric, "damp_percent": 0.01, "lm_head": False}
    section["checkpoint_format"] = "gptq_v2" if v2 else "gptq"
    form = "Q8_0" if shuffled else f"U{bits}_{32 if group % 128 and group > 0 else 128}"
    return Method(section, make, form, not shuffled)


def awq(group: int) -> Method:
    def make(weight: Array) -> Made:
        numbers, scale, zero, means = grouped(weight, 4, np.arange(weight.shape[1]) // group, False, torch.float16)
        qweight, qzeros = (words(x.T.reshape(-1, 8)[:, AWQ_PLACES].reshape(x.shape[1], -1), 4) for x in (numbers, zero))
        return {"qweight": qweight, "qzeros": qzeros, "scales": scale.T.contiguous()}, means

    section = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    return Method(section | {"version": "gemm"}, make, f"U4_{128 if group % 128 == 0 else 32}")


def compressed(form: str, fmt: str, **weights: Any) -> Callable[[Callable[[Array], Made]], Method]:
    """A decorator that makes a Method of compressed-tensors."""
    group = {"weights": weights, "input_activations": None, "targets": ["Linear"]}
    section = {"quant_method": "compressed-tensors", "format": fmt, "config_groups": {"g": group}}
    return lambda make: Method(section, make, form, form != "Q8_0")


def packed(bits: int, group: int | None, symmetric: bool) -> Method:
    def make(weight: Array) -> Made:
        inputs = weight.shape[1]
        order = np.arange(inputs) // (group or inputs)
        numbers, scale, zero, means = grouped(weight, bits, order, symmetric, torch.bfloat16)
        found = {"weight_packed": words(numbers, bits), "weight_scale": scale}
        found["weight_shape"] = torch.tensor(weight.shape)
        if not symmetric:
            found["weight_zero_point"] = words(zero.T, bits).T.contiguous()
        return found, means

    form = f"U{bits}_{128 if not group or group % 128 == 0 else 32}"
    fields = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group}
    return compressed(form, "pack-quantized", **fields)(make)


EIGHT: dict[str, Any] = {"num_bits": 8, "strategy": "channel", "symmetric": True, "dynamic": False}


@compressed("INT8", "int-quantized", type="int", **EIGHT)
def w8a8(weight: Array) -> Made:
    given = torch.from_numpy(weight)
    scale = (given.abs().amax(1, keepdim=True) / 127).bfloat16()
    numbers = (given / scale.double()).round().clamp(-128, 127).to(torch.int8)
    return {"weight": numbers, "weight_scale": scale}, numbers.float() * scale.float()


@compressed("Q8_0", "float-quantized", type="float", **EIGHT)
def fp8(weight: Array) -> Made:
    given = torch.from_numpy(weight)
    scale = (given.abs().amax(1, keepdim=True) / 448).float()
    numbers = (given / scale).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale": scale}, numbers.float() * scale


def fp8_blocks(rows: int, columns: int) -> Method:
    def make(weight: Array) -> Made:
        given = torch.from_numpy(weight).float()
        outputs, inputs = given.shape
        scale = torch.empty(-(-outputs // rows), -(-inputs // columns), dtype=torch.bfloat16)
        numbers = torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn)
        means = torch.empty(outputs, inputs)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                at = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                scale[i, j] = given[at].abs().max() / 448
                numbers[at] = (given[at] / scale[i, j].float()).to(torch.float8_e4m3fn)
                means[at] = numbers[at].float() * scale[i, j].float()
        return {"weight": numbers, "weight_scale_inv": scale}, means

    section = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    return Method(section | {"weight_block_size": [rows, columns]}, make, "Q8_0", False)


METHODS: dict[str, Method] = {
    "gptq 4": gptq(4, 128), "gptq 4, zeros, groups of 32": gptq(4, 32, symmetric=False),
    "gptq 4, second format": gptq(4, 64, symmetric=False, v2=True), "gptq 4, act-order": gptq(4, 32, shuffled=True),
    "gptq 8": gptq(8, -1), "gptq 8, groups of 32": gptq(8, 32, symmetric=False), "awq": awq(64),
    "w4a16": packed(4, 128, symmetric=True), "w4a16, zeros": packed(4, 32, symmetric=False),
    "w8a16, whole rows": packed(8, None, symmetric=True), "w8a8": w8a8, "fp8": fp8,
    "fp8 blocks": fp8_blocks(128, 128),
}  # fmt: skip


def publish(source: Path, folder: Path, method: Method) -> dict[str, Tensor]:
    """The checkpoint with all matrices of layers but the router quantised; and what that means, in floats."""
    config, table = json.loads((source / "config.json").read_text()), dict[str, Tensor]()
    for file in source.glob("*.safetensors"):
        table |= load_file(file)
    found, plain = dict[str, Tensor](), dict(table)
    for name in [name for name in table if name.endswith("_proj.weight")]:
        made, plain[name] = method.make(table.pop(name).double().numpy())
        found |= {name.removesuffix("weight") + end: x for end, x in made.items()}
    found |= table
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True)
    checkpoints.write(folder, {**config, "quantization_config": method.section}, found)
    return plain
