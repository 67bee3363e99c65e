"""Tokens per second at several batch sizes, beside transformers, and the memory that it takes."""

from __future__ import annotations

import gc
import json
import resource
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.budget import format_bytes
from fastslow.engine.model.base import kv_cache_for
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import tensor_shapes
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.tools.check_device.report import CheckPlan, Finding
from fastslow.tools.forward import forward_texts

BATCHES = (1, 8, 64)
PROMPT = 32
LEAK = 64 << 20  # bytes; libraries keep workspaces of their own


def speed(plan: CheckPlan) -> Finding:
    """A dense Llama of random weights, plain decoding, on both engines."""
    found = Finding("tokens per second")
    folder = write_llama(plan)
    tokens = 8 if plan.quick else 64
    batches = BATCHES[:2] if plan.quick else BATCHES
    ours: dict[int, float] = {}
    with LLM(
        folder,
        device=plan.device,
        dtype=plan.dtype,
        max_model_len=256,
        remember=False,
        progress=False,
    ) as llm:
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        vocabulary = llm.model.config.vocab_size
        for batch in batches:
            plan.say(batches.index(batch) / len(batches) / 2, f"{batch} at a time")
            seconds = []
            for n in range(2 if plan.quick else 3):  # the first one warms up
                asked = np.random.default_rng(n).integers(5, vocabulary, (batch, PROMPT)).tolist()
                started = time.perf_counter()
                answers = llm.generate(asked, sampling, speculation="off", progress=False)
                seconds.append(time.perf_counter() - started)
                if any(len(x.token_ids) != tokens for x in answers):
                    found.passed = False
                    found.lines.append(f"an answer of the batch of {batch} is not {tokens} long")
            ours[batch] = batch * tokens / min(seconds[1:])
        place = llm.model.device
    theirs = _transformers(plan, folder, place, batches, tokens)
    for batch in batches:
        other = "" if theirs is None else f", transformers {theirs[batch]:.0f}"
        found.lines.append(f"batch {batch}: {ours[batch]:.0f} tokens/s{other}")
    if theirs is None:
        found.lines.append(
            "transformers is not installed, so nothing is beside it: pip install transformers"
        )
    elif any(ours[n] < theirs[n] for n in batches):
        found.lines.append("slower than transformers: fastslow bench shows where time goes")
    found.figures = {"tokens_per_second": ours, "transformers": theirs, "tokens": tokens}
    found.advice = "the log says why; decode one prompt with fastslow generate --drafter off"
    return found


def memory(plan: CheckPlan) -> Finding:
    """Bytes of weights and of keys and values, the peak of a step, and what stays when all is let go."""
    found = Finding("memory")
    folder = write_llama(plan)
    after: list[int] = []
    weights: list[int] = []
    for turn in range(2):  # what libraries keep for themselves they take in the first one
        plan.say(turn / 2, "load, run, let go")
        start = used(plan.place)
        model: Any = load_model(folder, plan.dtype, plan.device, progress=False)
        loaded = used(plan.place)
        weights.append(loaded - start)
        cache: Any = kv_cache_for(model, 64, model.storage.page_size, False)
        kept = cache.storage.nbytes
        with_cache = used(plan.place)
        forward_texts(model, [list(range(5, 5 + 64))])
        top = peak(plan.place)
        del model, cache
        gc.collect()
        after.append(used(plan.place))
    whole = sum(int(np.prod(s)) for s in tensor_shapes(ModelConfig.from_folder(folder)).values())
    leaked = after[1] - after[0]
    found.figures = {
        "parameters": whole,
        "weights": weights[0],
        "kv": kept,
        "kv_measured": with_cache - loaded,
        "peak": top,
        "left": leaked,
    }
    found.lines = [
        f"weights {format_bytes(max(0, weights[0]))} for {whole / 1e6:.0f} M parameters, keys and "
        f"values {format_bytes(kept)} for {64} pages, peak {format_bytes(top)}"
        + (" of the process" if plan.place.type == "cpu" else ""),
        f"left when all is let go: {format_bytes(max(0, leaked))} (limit {format_bytes(LEAK)})",
    ]
    found.passed = leaked <= LEAK
    found.advice = "close every LLM and run it again; if it stays, report this file"
    return found


def used(device: torch.device) -> int:
    """Bytes that this process's tensors take on an accelerator; on the CPU, that it has in memory."""
    if device.type != "cpu":
        return int(torch.get_device_module(device).memory_allocated(device))
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * resource.getpagesize()


def peak(device: torch.device) -> int:
    """The most that `used` was."""
    if device.type != "cpu":
        return int(torch.get_device_module(device).max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_llama(plan: CheckPlan) -> Path:
    """A Llama checkpoint of random weights, once for all parts."""
    folder = plan.folder / "llama"
    if folder.is_dir():
        return folder
    # on the CPU so small that no packed form of it is kept
    hidden, layers = (384, 6) if plan.place.type == "cpu" else (1024, 12)
    hidden, layers = (128, 2) if plan.quick else (hidden, layers)
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 8 * hidden if plan.quick else 8192,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields), "utf-8")
    rng = torch.Generator().manual_seed(0)
    table = {
        name: (torch.randn(shape, generator=rng) * 0.05 if len(shape) > 1 else torch.ones(shape))
        for name, shape in tensor_shapes(ModelConfig.from_folder(folder)).items()
    }
    save_file(
        {name: x.bfloat16() for name, x in table.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def _transformers(
    plan: CheckPlan, folder: Path, place: torch.device, batches: tuple[int, ...], tokens: int
) -> dict[int, float] | None:
    if find_spec("transformers") is None:
        return None
    from transformers import AutoModelForCausalLM

    dtype = "bfloat16" if plan.dtype == "auto" else plan.dtype
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    model = model.to(place).eval()
    rates = {}
    for batch in batches:
        plan.say(0.5 + batches.index(batch) / len(batches) / 2, f"transformers, {batch} at a time")
        ids = torch.randint(5, 1000, (batch, PROMPT), device=place)
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            with torch.inference_mode():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=0,
                ).cpu()
            seconds.append(time.perf_counter() - started)
        rates[batch] = batch * tokens / min(seconds)
    return rates
