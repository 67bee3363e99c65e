"""Run by `test_npu_wheel.py` in a process of its own, with the real torch-npu and a CANN of memory only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import npu_kernels
import npu_memory
import pytest
import texts
import torch
import torch_npu
from checkpoints import write_moge
from engine_tools import Ask, outcome
from exact_tools import VOCAB, make_bench, params, tell
from npu_sim import HostSync

from fastslow.engine.backends.accelerator import npu as npu_module
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.loader import load_model

TOKENS = texts.tokens_of(60)
PROMPTS = [tuple(texts.tokens_of(n, n, VOCAB)) for n in (3, 21, 120, 131, 6)]


def logits(folder: Path) -> None:
    model: Any = load_model(folder, "float32", "npu", progress=False)
    assert isinstance(model, PagedDecoder) and model.device.type == "npu"
    expected = texts.logits(load_model(folder, "float32", "cpu", progress=False), TOKENS)
    for groups in (None, 2, 0):
        wanted = texts.logits(load_model(folder, "float32", "cpu"), TOKENS, groups=groups)
        found = texts.logits(model, TOKENS, [40, 5, *[1] * 15], groups=groups)
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
        assert torch.equal(found.argmax(-1), wanted.argmax(-1))
    assert model.recorder.replays == 3 * 14, model.recorder.replays
    own = load_model(folder, "bfloat16", "npu", progress=False)
    assert (texts.logits(own, TOKENS) - expected).abs().mean() < 0.5
    print("logits on", model.device, "with", model.recorder.replays, "replays")


def answers(folder: Path) -> None:
    cpu, npu_module = make_bench(folder, "moge"), make_bench(folder, "moge", device="npu")
    names = ("off", "ngram", "model", "tree", "self1", "self tree", "skip", "told", "forked")
    asks = [
        Ask(PROMPTS[i % 5], params(max_tokens=14), name, groups=(None, 0, 2)[i % 3])
        for i, name in enumerate(names)
    ]
    tell(cpu, asks)
    for name in ("told", "forked"):
        npu_module.drafters[name] = cpu.drafters[name]
    for ask, request in zip(asks, npu_module.run(asks), strict=True):
        assert outcome(request) == outcome(cpu.alone(ask)), ask
    print("answers of", len(names), "drafters")


def waiting() -> None:
    graph, x = torch_npu.npu.NPUGraph(), torch.ones(3, device="npu:0")
    for wrong in (lambda: x.sum().item(), lambda: x.cpu(), lambda: x + torch.ones(3)):
        with pytest.raises(HostSync), torch_npu.npu.graph(graph):
            wrong()
        npu_memory.Memory.now.calls = None
    print("a word with the host is seen")


def main(folder: Path) -> None:
    npu_memory.install()
    npu_kernels.CHIP.exact = True
    npu_module.NpuOps.dtypes = (*npu_module.NpuOps.dtypes, torch.float32)
    with npu_memory.computing():
        logits(write_moge(folder / "moge"))
        answers(folder / "bench")
        waiting()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
