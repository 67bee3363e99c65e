"""One layer of the shape of openPangu Pro MoE 72B, random weights: times and share of the bandwidth."""

from __future__ import annotations

import time
from math import isfinite, prod
from typing import Any

import numpy as np
import torch

from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.weights import Stacked
from fastslow.engine.backends.cpu import library, store
from fastslow.engine.backends.cpu.arena import Arena
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Formats
from fastslow.engine.backends.cpu.pieces import Sources
from fastslow.engine.backends.device import choose_device, ops_for, paged_ops_for
from fastslow.engine.host.machine import free_memory
from fastslow.engine.kv.budget import format_bytes
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.decoder import Decoder, Weights
from fastslow.engine.model.int8 import QuantLinear, no_int8
from fastslow.engine.model.tensors import tensor_shapes
from fastslow.engine.types import Rows
from fastslow.tools.check_device.report import CheckPlan, Finding
from fastslow.tools.forward import chain

ROWS = (1, 8, 64)
CONTEXT = 100
MATRIX = "_proj.weight"  # what W8A8 has in int8
NOISE = 1 << 24  # weights that differ; all are cut from these
APART = 0.2  # of W8A8 from bfloat16, relative
COPIES = 4  # that are timed together
SPACE = 3  # times a layer's weights: what loading it takes
"""Facts of the model: 48 layers, hidden 5120, 40 heads over 8 key heads of 128, 64 experts of 1344 in 8
groups, shared experts of 5376 (config.json of openPangu Pro MoE 72B-A16B)."""
PANGU: dict[str, Any] = {
    "architectures": ["PanguProMoEForCausalLM"],
    "model_type": "PanguProMoE",
    "vocab_size": 1024,  # the layer is measured, not the head
    "hidden_size": 5120,
    "intermediate_size": 5376,
    "num_hidden_layers": 1,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_theta": 16000000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1344,
    "shared_expert_intermediate_size": 5376,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
EIGHTH = {
    "hidden_size": 640,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "intermediate_size": 672,
    "moe_intermediate_size": 176,
    "shared_expert_intermediate_size": 672,
    "num_experts": 16,
}


def layer_72b(plan: CheckPlan) -> Finding:
    """Steps of 1, 8 and 64 texts in bfloat16 (float16 where that is the chip's) and in W8A8."""
    found = Finding("one layer of the 72B's shape")
    place = choose_device(plan.device)
    fields = PANGU | (EIGHTH if plan.quick else {})
    room = free_memory(place.device)
    while True:
        config = ModelConfig.from_json(fields)
        needed = SPACE * 2 * sum(map(prod, tensor_shapes(config).values()))
        if needed <= room or fields["num_experts"] <= 8:
            break
        fields |= {"num_experts": fields["num_experts"] // 2}
    if fields["num_experts"] < PANGU["num_experts"]:
        why = "quick" if plan.quick else f"{format_bytes(room)} of memory are free"
        found.lines.append(f"smaller than the model's, {fields['num_experts']} experts: {why}")
    rate = bandwidth(place.device, plan.quick)
    logits: list[torch.Tensor] = []
    times: dict[str, dict[int, dict[str, float]]] = {}
    for n, kind in enumerate(("floats", "w8a8")):
        plan.say(n / 2, f"{kind}: making weights")
        model = build(config, plan, kind == "w8a8")
        name = kind if kind == "w8a8" else str(model.dtype).removeprefix("torch.")
        size = 1 if kind == "w8a8" else model.dtype.itemsize
        times[name] = {}
        for rows in ROWS:
            plan.say(n / 2 + 0.3, f"{name}: {rows} texts")
            seconds, out = measured(model, rows, 3 if plan.quick else 8)
            rate = max(rate, bandwidth(place.device, plan.quick))  # others may disturb one
            moved = touched(config, rows) * size
            times[name][rows] = {"ms": round(seconds * 1e3, 3), "bytes": moved}
            if rows == 8:
                logits.append(out)
            if not bool(out.isfinite().all()):
                found.passed = False
                found.lines.append(f"{name}, {rows} texts: logits are not finite")
        if kind == "w8a8" and isinstance(model, PagedDecoder) and not model.ops.runs_int8:
            found.lines.append("W8A8 is multiplied out on this device: its share counts int8 bytes")
        del model
    found.lines.append(f"memory bandwidth, by copying: {rate / 1e9:.1f} GB/s")
    for name, found_times in times.items():
        for one in found_times.values():
            one["bandwidth_share"] = round(one["bytes"] / one["ms"] * 1e3 / rate, 3)
        shown = (
            f"{r}: {x['ms']:.2f} ms ({x['bandwidth_share']:.0%})" for r, x in found_times.items()
        )
        found.lines.append(f"{name}, texts: time (share of the bandwidth) {', '.join(shown)}")
    apart = float((logits[0] - logits[1]).norm() / logits[0].norm())
    found.lines.append(f"W8A8 differs from floats by {apart:.1%} (limit {APART:.0%})")
    found.figures = {
        "config": fields,
        "bandwidth": rate,
        "times": times,
        "w8a8_apart": apart if isfinite(apart) else None,
    }
    found.passed = found.passed is not False and 0 < apart <= APART
    found.advice = (
        "where the part exact passes, this shape or W8A8 is at fault, not the whole device: report this "
        "file, and run W8A8 checkpoints with quantization='none' until then"
    )
    return found


def build(config: ModelConfig, plan: CheckPlan, int8: bool) -> Model:
    """The layer on the device, its weights made as they are asked for: no file is read."""
    place = choose_device(plan.device)
    shapes = tensor_shapes(config)
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(NOISE if not plan.quick else 1 << 20, generator=random)
    names = {name: n for n, name in enumerate(shapes)}

    def read(name: str) -> torch.Tensor:
        shape = shapes[name]
        if len(shape) == 1 and name.endswith("norm.weight"):
            return torch.ones(shape)
        start, count = names[name] * 7919 % (len(noise) // 4), prod(shape)
        times = -(-(start + count) // len(noise))
        enough = noise if times == 1 else noise.repeat(times)
        flat = enough[start : start + count].view(shape)
        if name.endswith("router_scale"):
            return flat.abs() + 1
        if name.endswith(".bias"):  # small, or every text would choose the same experts
            return flat * 0.02
        return flat * (shape[-1] ** -0.5 if len(shape) > 1 and "embed" not in name else 0.5)

    def linear(name: str) -> QuantLinear | None:
        return QuantLinear.of(read(name)) if name.endswith(MATRIX) else None

    def rounded(name: str) -> torch.Tensor:
        """As a checkpoint gives it to a device that multiplies int8 weights out."""
        found = linear(name)
        return read(name) if found is None else found.dequantised()

    quantised, source = (linear, rounded) if int8 else (no_int8, read)
    if place.kind != "cpu":
        ops = paged_ops_for(place)
        dtype = ops.nearest(torch.bfloat16)
        return PagedDecoder(Stacked(config, ops, dtype, place.device, source, quantised))
    if not library.available():
        weights = Weights(config, ops_for("cpu"), torch.bfloat16, place.device, source, quantised)
        return Decoder(weights)
    kept = [x for x in shapes if x.endswith(MATRIX)] if int8 else []
    formats = Formats.of(torch.bfloat16, "none")
    if int8:
        formats = Formats.w8a8(torch.bfloat16, kept, "lm_head.weight")
    arena = Arena.of(config, formats)
    path = plan.folder / f"layer-{formats.name}-1.packed"
    sources = Sources(source, lambda name: None, quantised)
    packed = store.create(path, arena, sources, lambda: path)
    return CpuDecoder(config, formats, arena, packed)


def measured(model: Model, rows: int, times: int) -> tuple[float, torch.Tensor]:
    """The fastest step of one more token of each of `rows` texts, and its logits."""
    page = max(16, model.storage.page_size)
    pages = -(-(CONTEXT + 1) // page)
    kv = kv_cache_for(model, rows * pages, page, False).storage
    tokens = np.random.default_rng(0).integers(5, 1000, (rows, CONTEXT + 1)).tolist()
    slots = [np.arange(n * pages * page, n * pages * page + CONTEXT + 1) for n in range(rows)]
    for some in range(0, rows, 8):
        few = range(some, min(some + 8, rows))
        model.forward(Rows.of([chain(tokens[n], slots[n], 0, CONTEXT) for n in few]), kv)
    step = Rows.of([chain(t, s, CONTEXT, CONTEXT + 1, outputs=[0]) for t, s in zip(tokens, slots)])
    seconds = []
    out = model.forward(step, kv).logits
    for _ in range(times):
        started = time.perf_counter()
        out = model.forward(step, kv).logits  # on the CPU: the device has ended
        seconds.append(time.perf_counter() - started)
    return min(seconds), out


def touched(config: ModelConfig, rows: int) -> float:
    """Weights that a step of so many texts reads, if experts are chosen independently."""
    whole = sum(
        prod(shape)
        for name, shape in tensor_shapes(config).items()
        if ".experts." not in name and "embed" not in name
    )
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    size = config.experts // config.groups
    return whole + expert * config.experts * (1 - (1 - 1 / size) ** rows)


def bandwidth(device: torch.device, quick: bool) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros((8 if quick else 256) << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(COPIES):
            target.copy_(source)
        target[-1:].cpu()  # all copies have ended
        best = max(best, 2 * COPIES * len(source) / (time.perf_counter() - started))
    return best
