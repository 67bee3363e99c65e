"""The kernels that stand in for an NPU's: their numbers, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import npu_kernels
import pytest
import torch
from npu_kernels import define
from npu_tools import simulated
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.ops import DeviceMatrix, DeviceMlp, ExpertChoice
from fastslow.engine.backends.accelerator.routing import choose_on_device
from fastslow.engine.model.moge import choose

define()
OPS: Any = torch.ops.npu
ATB: Any = torch.ops.atb
BLOCK = 128


@pytest.fixture(autouse=True)
def chip() -> Iterator[None]:
    with simulated("Ascend910B1"):
        yield


@pytest.fixture
def small(chip: None) -> Iterator[None]:
    with simulated("Ascend310P3"):
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def routed(x: Tensor, experts: Tensor, count: int, **given: Any) -> Any:
    return OPS.npu_moe_init_routing_v2(
        x,
        experts,
        **{
            "active_num": experts.numel(),
            "expert_num": count,
            "expert_tokens_num_type": 1,
            "expert_tokens_num_flag": True,
            "active_expert_range": [0, count],
            "quant_mode": -1,
            **given,
        },
    )


def test_norms_and_products() -> None:
    x, y, w = random(3, 32), random(3, 32, seed=1), random(32, seed=2)
    torch.testing.assert_close(OPS.npu_rms_norm(x, w, 1e-5)[0], F.rms_norm(x, (32,), w, 1e-5))
    out, _, total = OPS.npu_add_rms_norm(x, y, w, 1e-5)
    assert torch.equal(total, x + y)
    torch.testing.assert_close(out, F.rms_norm(x + y, (32,), w, 1e-5))
    torch.testing.assert_close(OPS.npu_swiglu(x), F.silu(x[:, :16]) * x[:, 16:])


def test_rotation_by_complex_numbers() -> None:
    x, angle = random(5, 2, 128), random(5, 1, 64, seed=1)
    cos, sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))
    turned = torch.complex(x[..., :64], x[..., 64:]) * torch.polar(torch.ones(5, 1, 64), angle)
    expected = torch.cat((turned.real, turned.imag), -1)
    torch.testing.assert_close(OPS.npu_rotary_mul(x, cos, sin), expected)


def test_rows_are_routed_multiplied_and_merged() -> None:
    """Against each row through its own experts, one by one."""
    x, weights = random(6, 16), random(6, 2, seed=1)
    up, down = random(4, 16, 64, seed=2), random(4, 32, 16, seed=3)
    experts = torch.tensor([[0, 3], [2, 2], [4, 1], [4, 4], [3, 0], [1, 4]], dtype=torch.int32)
    weights = weights.masked_fill(experts == 4, 0)
    rows, places, counts, _ = routed(x, experts, 5)
    assert counts.tolist() == [2, 2, 2, 2, 4]
    assert sorted(places.tolist()) == list(range(12))
    assert torch.equal(rows[places[2 * 1].long()], x[1])
    inner = OPS.npu_grouped_matmul(
        [rows], [up], group_list=counts[:4], split_item=2, group_type=0, group_list_type=1
    )[0]
    assert inner[8:].isnan().all(), "what belongs to no group holds anything"
    ends = counts[:4].cumsum(0)
    out = OPS.npu_grouped_matmul(
        [OPS.npu_swiglu(inner)], [down], group_list=ends, split_item=2, group_type=0
    )[0].nan_to_num()
    shared = random(6, 16, seed=4)
    total = OPS.npu_moe_finalize_routing(
        out, shared, None, None, weights, places, experts, drop_pad_mode=2
    )
    for row in range(6):
        expected = shared[row].clone()
        for k in range(2):
            e = int(experts[row, k])
            if e < 4:
                expected += weights[row, k] * (OPS.npu_swiglu(x[row, None] @ up[e]) @ down[e])[0]
        torch.testing.assert_close(total[row], expected, rtol=1e-5, atol=1e-4)  # other sums
    by_column = OPS.npu_moe_finalize_routing(
        out, shared, None, None, weights, places, experts, drop_pad_mode=0
    )
    assert not torch.allclose(by_column, total), "the modes number the rows differently"


def test_a_310p_gives_running_totals(small: None) -> None:
    experts = torch.tensor([[0, 3], [2, 2]], dtype=torch.int32)
    assert routed(random(2, 16), experts, 4)[2].tolist() == [1, 1, 3, 4]


def paged(kv_heads: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks of keys, two texts' block numbers, and the first text's 200 keys in order."""
    cache = random(6, BLOCK, kv_heads, 128, seed=seed)
    table = torch.tensor([[4, 2], [1, 0]], dtype=torch.int32)
    return cache, table, torch.cat((cache[4], cache[2]))[:200]


def fused(q: Tensor, k: Tensor, v: Tensor, table: Tensor, **given: Any) -> Any:
    mask = torch.ones(2048, 2048, dtype=torch.int8).triu(1)
    named = {
        "atten_mask": mask,
        "actual_seq_lengths": [3, 4],
        "actual_seq_lengths_kv": [200, 9],
        "block_table": table,
        "num_heads": 4,
        "scale": 0.1,
        "input_layout": "TND",
        "num_key_value_heads": 2,
        "sparse_mode": 3,
        "block_size": BLOCK,
        **given,
    }
    return OPS.npu_fused_infer_attention_score(q, k.flatten(2), v.flatten(2), **named)


def test_paged_attention_is_attention() -> None:
    q = random(4, 4, 128)
    (k, table, text_k), (v, _, text_v) = paged(2, 1), paged(2, 2)
    out = fused(q, k, v, table)[0]
    expected = [
        F.scaled_dot_product_attention(
            q[i, :, None], text_k[:seen].transpose(0, 1), text_v[:seen].transpose(0, 1),
            scale=0.1, enable_gqa=True,
        )[:, 0]
        for i, seen in enumerate((198, 199, 200))
    ]  # fmt: skip
    torch.testing.assert_close(out[:3], torch.stack(expected))
    part, weight = fused(q, k, v, table, atten_mask=None, sparse_mode=0, softmax_lse_flag=True)
    torch.testing.assert_close(part[2], out[2])
    assert not torch.allclose(part[0], out[0]), "without the mask all rows see all keys"
    scores = torch.einsum("hd,sd->hs", q[0, :2], text_k[:, 0]) * 0.1
    torch.testing.assert_close(weight[0, :2, 0], scores.logsumexp(-1))


def fractal(cache: Tensor) -> Tensor:
    return cache.flatten(2).view(len(cache), BLOCK, -1, 16).transpose(1, 2).contiguous()


def test_the_310p_attends_alike() -> None:
    q = random(4, 4, 128)
    (k, table, _), (v, *_) = paged(2, 1), paged(2, 2)
    out = fused(q, k, v, table)[0]
    with simulated("Ascend310P3"):
        mask = torch.full((2048, 2048), -10000.0).triu(1)
        same, rows = torch.empty_like(q), torch.tensor([3, 1], dtype=torch.int32)
        lengths = torch.tensor([200, 9], dtype=torch.int32)
        split = ATB._npu_paged_attention_splitfuse_v2
        split(q, fractal(k), fractal(v), table, lengths, mask, rows, 2, 4, 0.1, out=same)
        torch.testing.assert_close(same, out)
        own = torch.tensor([198, 199, 200, 9], dtype=torch.int32)
        each = table.index_select(0, torch.tensor([0, 0, 0, 1]))
        ATB._npu_paged_attention(q, fractal(k), fractal(v), 2, 4, 0.1, each, own, same)
        torch.testing.assert_close(same, out)


def test_int8_products_are_whole_sums() -> None:
    x, w = random(3, 32).bfloat16(), random(32, 16, seed=1)
    step = w.abs().amax(0) / 127
    whole = (w / step).round().to(torch.int8)
    rows, each = OPS.npu_dynamic_quant(x)
    out = OPS.npu_quant_matmul(rows, whole, step, pertoken_scale=each, output_dtype=torch.bfloat16)
    sums = rows.long() @ whole.long()
    torch.testing.assert_close(out, (sums * step * each[:, None]).bfloat16())
    torch.testing.assert_close(out.float(), x.float() @ w, atol=0.3, rtol=0.05)


Q, K = random(4, 4, 128), random(6, 128, 2, 128)


def test_experts_are_chosen_as_on_the_host() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(200, 24, generator=generator) * 2).round()  # many ties
    scale = torch.ones(24)
    scale[::3] = 2.0
    wanted = torch.randint(0, 5, (200,), generator=generator)
    choice = choose(logits, scale, 4, wanted.numpy())
    experts, weights = choose_on_device(logits, scale, 4, wanted.int())
    runs = torch.from_numpy(choice.runs)
    assert torch.equal(experts, torch.where(runs, choice.experts, 24).int())
    assert torch.equal(weights, torch.where(runs, choice.weights, 0.0))
    assert experts.dtype == torch.int32
    assert len(npu_kernels.SCHEMAS) == 15


@pytest.mark.parametrize("name", ["Ascend910B1", "Ascend310P3"])
def test_the_routers_weights_are_not_rounded(name: str) -> None:
    """Neither those that it multiplies by nor those that it gives: two experts that are each other's
    negative nearly cancel, and what is left is the difference of their weights."""
    from fastslow.engine.backends.accelerator.npu import NpuOps
    from fastslow.engine.backends.accelerator.npu_310p import Npu310pOps

    with simulated(name, exact=False):
        kind = Npu310pOps if name == "Ascend310P3" else NpuOps
        ops = kind(torch.device("cpu"))
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
