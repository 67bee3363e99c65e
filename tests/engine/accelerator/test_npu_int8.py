"""Weights on simulated NPUs: int8 where a chip runs it, and a router's, which are not rounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import npu_kernels
import pytest
import texts
import torch
from checkpoints import write, write_moge
from npu_tools import CHIPS, simulated
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.ops import DeviceMatrix, DeviceMlp
from fastslow.engine.backends.accelerator.weights import Mixture, Stacked
from fastslow.engine.backends.device import choose_device, paged_ops_for
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.moge import ExpertChoice
from fastslow.engine.model.ops import QuantLinear

TOKENS = texts.tokens_of(60)


def rounded(weight: Tensor) -> QuantLinear:
    scale = (weight.float().abs().amax(-1) / 127).bfloat16().float()
    return QuantLinear(
        (weight.float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, QuantLinear]]:
    """A checkpoint whose matrices are what int8 holds, and these matrices in int8."""
    folder = write_moge(tmp_path_factory.mktemp("w8a8"), sharded=False, mlp_only_layers=[1])
    table = load_file(folder / "model.safetensors")
    quantised = {
        name: rounded(weight) for name, weight in table.items() if name.endswith("_proj.weight")
    }
    for name, matrix in quantised.items():
        table[name] = matrix.weight_OI.float() * matrix.scale_O[:, None]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return write(folder, config, table), quantised


def on_npu(folder: Path, matrices: dict[str, QuantLinear], dtype: torch.dtype) -> PagedDecoder:
    config = ModelConfig.from_folder(folder)
    place = choose_device("npu")
    with Checkpoint.open(folder, config).reader(progress=False) as read:
        ops = paged_ops_for(place)
        return PagedDecoder(Stacked(config, ops, dtype, place.device, read, matrices.get))


def test_int8_errs_as_its_rounding_of_rows_does(
    folders: tuple[Path, dict[str, QuantLinear]],
) -> None:
    folder, matrices = folders
    exact = texts.logits(load_model(folder, "float32", "cpu"), TOKENS)
    npu_kernels.calls.clear()
    with simulated(CHIPS[0], exact=False):
        model = on_npu(folder, matrices, torch.bfloat16)
        found = texts.logits(model, TOKENS, [50, *[1] * 10])
        plain = texts.logits(load_model(folder, "bfloat16", "npu"), TOKENS)
    moge = model.weights.layers[0].mlp
    assert isinstance(moge, Mixture)
    assert model.weights.layers[0].qkv.weight.dtype == torch.int8
    assert moge.experts.gate_up.weight.dtype == torch.int8
    assert npu_kernels.calls["npu_quant_matmul"] > 0 and model.recorder.replays == 9
    error, usual = (found - exact).abs().mean(), (plain - exact).abs().mean()
    assert error < 4 * usual
    assert (found.argmax(-1) == exact.argmax(-1)).float().mean() > 0.8


def test_a_310p_multiplies_them_out(folders: tuple[Path, dict[str, QuantLinear]]) -> None:
    folder, matrices = folders
    with simulated(CHIPS[1]):
        model = on_npu(folder, matrices, torch.float32)
        assert model.weights.layers[0].qkv.scale is None
        found = texts.logits(model, TOKENS)
    exact = texts.logits(load_model(folder, "float32", "cpu"), TOKENS)
    torch.testing.assert_close(found, exact, atol=1e-3, rtol=0)


def test_experts_are_all_of_one_kind(folders: tuple[Path, dict[str, QuantLinear]]) -> None:
    folder, matrices = folders
    some = {n: m for n, m in matrices.items() if "experts.3." not in n}
    with (
        simulated(CHIPS[0], exact=False),
        pytest.raises(ValueError, match=r"layers\.0\.mlp: some experts are int8 and some are not"),
    ):
        on_npu(folder, some, torch.bfloat16)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CHIPS)
def test_the_routers_weights_are_not_rounded(name: str) -> None:
    """Neither those that it multiplies by nor those that it gives: two experts that are each other's
    negative nearly cancel, and what is left is the difference of their weights."""
    with simulated(name, exact=False):
        ops: Any = paged_ops_for(choose_device("npu"))
        x = random(3, 32).to(ops.dtypes[0])
        router = random(4, 32, seed=1)
        assert torch.equal(ops.route(x, router), F.linear(x.float(), router))
        up = random(1, 32, 32, seed=2).to(x.dtype)
        down = random(1, 16, 32, seed=3).to(x.dtype)
        both = DeviceMlp(
            DeviceMatrix(ops.pack_experts(torch.cat((up, up)))),
            DeviceMatrix(ops.pack_experts(torch.cat((down, -down)))),
        )
        experts = torch.tensor([[0, 1]] * 3, dtype=torch.int32)
        weights = torch.tensor([[0.5001, 0.5]] * 3)
        none = torch.zeros_like(x)
        found = ops.experts(x, ExpertChoice(experts, weights), both, none)
        alone = torch.tensor([[1.0, 0.0]] * 3)
        one = ops.experts(x, ExpertChoice(experts, alone), both, none)
        torch.testing.assert_close(found.float(), one.float() * 1e-4, rtol=0.02, atol=1e-6)
