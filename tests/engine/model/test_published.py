"""Published quantised checkpoints: read, run in their own numbers, refused where they are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import texts
import torch
from engine_tools import Ask
from exact_tools import DENSE_DRAFTERS, EVERY, PROMPTS, check, make_bench, params
from kernel_tools import compiled
from published_tools import METHODS, publish
from safetensors.torch import load_file

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.model.config import ModelConfig

FAMILIES = {"llama": {}, "qwen3_moe": {"moe_intermediate_size": 128, "mlp_only_layers": []}}
WIDE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256, "num_hidden_layers": 2}
PARTS = ("self_attn.o_proj", "self_attn.k_proj", "mlp.down_proj", "mlp.experts.3.up_proj")


def written(folder: Path, family: str, method: str, **fields: Any) -> tuple[Path, Path]:
    source = checkpoints.write_family(folder / "s", family, **WIDE, **FAMILIES[family], **fields)
    return publish(source, folder, METHODS[method])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_floats_are_the_methods_own(
    tmp_path: Path, method: str, family: str, logged: list[str]
) -> None:
    """Every number bit for bit; logits in float32 sums."""
    folder, plain = written(tmp_path, family, method)
    config = ModelConfig.from_folder(folder)
    table = load_file(plain / "model.safetensors")
    checkpoint = Checkpoint.own(folder, config)
    assert checkpoint.names >= table.keys()
    with checkpoint.reader(False) as read:
        for name, wanted in table.items():
            assert torch.equal(read(name), wanted), name
        name = "model.layers.1.self_attn.q_proj.weight"
        assert torch.equal(read(name, (slice(3, 9), slice(8))), table[name][3:9, :8])
    tokens = texts.tokens_of(30)
    found, wanted = (texts.logits(load_model(x, "float32"), tokens) for x in (folder, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert sum("q runs as float32, not in its own" in line for line in logged) == 1


@compiled
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_the_kernels_run_the_same_numbers(
    tmp_path: Path, method: str, family: str, logged: list[str]
) -> None:
    """What tiles mean is what the method means, bit for bit where a format holds it; else near by."""
    folder, plain = written(tmp_path, family, method)
    how = METHODS[method]
    model = load_model(folder, quantization="auto")
    assert isinstance(model, CpuDecoder)
    assert any("and run so" in line for line in logged)
    assert any("rounded to 8 bits" in line for line in logged) is not how.exact
    for key, name in (("1.out", "self_attn.o_proj"), ("1.down", "mlp.down_proj")):
        if "mlp" in name and family == "qwen3_moe":
            key, name = "1.expert5.down", "mlp.experts.5.down_proj"
        matrix = model._matrix(key)
        wanted = load_file(plain / "model.safetensors")[f"model.layers.1.{name}.weight"]
        assert matrix.format == Format[how.form]
        piece = model._arena.pieces[key]
        raw = np.empty(piece.nbytes + 64, np.uint8)
        tiles = raw[-raw.ctypes.data % 64 :][: piece.nbytes]
        at = model._arena.offsets[key]
        tiles[:] = model._memory.hot[at : at + piece.nbytes]
        found = torch.from_numpy(library.unpack(tiles, matrix.format, *wanted.shape))
        if how.exact:
            assert torch.equal(found, wanted)
        step = wanted.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
        assert ((found - wanted).unflatten(-1, (-1, 32)).abs() <= 0.6 * step).all()
    tokens = texts.tokens_of(30)
    exact = texts.logits(load_model(plain, "float32"), tokens).log_softmax(-1)
    own = texts.logits(model, tokens).log_softmax(-1)
    assert (own.exp() * (own - exact)).sum(-1).median() < 0.02
    assert (own - exact).abs().max() > 0


@compiled
@pytest.mark.parametrize("kind", ["dense", "moge"])
@pytest.mark.parametrize("method", METHODS)
def test_every_drafter_says_what_plain_decoding_says(
    tmp_path: Path, method: str, kind: str
) -> None:
    def load(folder: Path, **options: Any) -> Any:
        return load_model(publish(folder, tmp_path, METHODS[method])[0], quantization="auto")

    wide = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 128}
    if kind == "moge":
        wide |= {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 128}
    bench = make_bench(tmp_path, kind, load=load, **wide)
    names = EVERY if kind == "moge" else DENSE_DRAFTERS
    asks = [
        Ask(PROMPTS[n % len(PROMPTS)], params(max_tokens=12), name, seed=n)
        for n, name in enumerate(names)
    ]
    assert check(bench, asks)["accepted"] > 10
