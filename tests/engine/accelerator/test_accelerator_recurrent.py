"""Recurrent layers between attention in the accelerator's decoder: what plain torch says on the CPU."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import hybrid_model
import pytest
import texts
import torch
from accelerator_tools import DEVICES, ops_of, paged, plain
from checkpoints import ROTATED, tensors, write
from engine_tools import Ask, Bench, Setting, answer
from layer_fuzz import LayerFuzz, near
from npu_tools import CHIPS, simulated
from peer_models import conv_or_full
from torch import Tensor

from fastslow.draft.mtp.draft import MtpDraft
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.ops import PagedOps
from fastslow.engine.backends.loader import load_model
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.model.base import kv_cache_for
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.parallel.sharding import Parallel, RankShard, usual
from fastslow.engine.params import SamplingParams

TOKENS = texts.tokens_of(300, vocab=32)
SIZES = [130, 1, 32, 4, 4, 1, 1, 40, 44, 43]  # odd ones are folded in a step later
EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LFM = {name: value for name, value in ROTATED.items() if name != "rms_norm_eps"} | {"num_hidden_layers": 3}
LFM |= {"vocab_size": 32, "block_multiple_of": 32, "layer_types": conv_or_full("cfc"), "norm_eps": 1e-5}
CONFIGS = {
    "qwen": {
        **hybrid_model.SHORT, "architectures": ["Qwen3_5ForCausalLM"],
        **dict.fromkeys((*EXPERTS, "shared_expert_intermediate_size")),
    },
    "qwen moe": hybrid_model.SHORT,
    "lfm": {**LFM, "architectures": ["Lfm2ForCausalLM"]},
    "lfm moe": {**LFM, **EXPERTS, "architectures": ["Lfm2MoeForCausalLM"], "num_dense_layers": 1},
}  # fmt: skip


USUAL = (("lfm moe", "cuda"), ("qwen", CHIPS[0]), ("lfm", CHIPS[1]))
PLACES = [
    pytest.param(pair, marks=() if pair in USUAL else pytest.mark.slow, id=" ".join(pair))
    for pair in product(CONFIGS, DEVICES)
]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, PagedOps]]:
    name, device = request.param
    with ops_of(device) as ops:
        yield name, ops


def read(name: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    raw = CONFIGS[name]
    return ModelConfig.from_json(raw), (hybrid_model.table if "qwen" in name else tensors)(raw)


def both(name: str, ops: PagedOps) -> tuple[PagedDecoder, Decoder]:
    config, table = read(name)
    return paged(config, ops, table.__getitem__), plain(config, table.__getitem__)


def test_logprobs_are_those_of_plain_torch(place: tuple[str, PagedOps], logged: list[str]) -> None:
    model, cpu = both(*place)
    found, wanted = (texts.cached_logits(x, kv_cache_for(x, 4, 128), TOKENS, SIZES) for x in (model, cpu))
    torch.testing.assert_close(found.log_softmax(-1), wanted.log_softmax(-1), rtol=0, atol=2e-4)
    assert model.recorder.replays == 0
    said = sum("steps with running states are not recorded" in line for line in logged)
    assert said == model.ops.records


def test_answers_are_those_of_plain_torch(place: tuple[str, PagedOps]) -> None:
    check(*place, 20)


@pytest.mark.slow
def test_many_answers_are_those_of_plain_torch(place: tuple[str, PagedOps]) -> None:
    check(*place, 500)


def test_heads_too_wide_for_a_chip_run_on_plain_torch(tmp_path: Path, logged: list[str]) -> None:
    """Those of published models are."""
    config = CONFIGS["qwen"] | {"head_dim": 256, "torch_dtype": "bfloat16"}
    with simulated(CHIPS[0], exact=False):
        model = load_model(write(tmp_path, config, tensors(config)), "auto", "npu", progress=False)
    assert isinstance(model, Decoder)
    assert any("need head_dim of at most 192, not 256" in line for line in logged)


def test_several_ranks_refuse_it() -> None:
    for ask in (lambda config: RankShard.all(config, Parallel(tp=2)), lambda config: usual(config, 2)):
        with pytest.raises(ValueError, match="^several ranks cannot share Qwen3_5ForCausalLM: they have no Gated"):
            ask(read("qwen")[0])


def check(name: str, ops: PagedOps, requests: int) -> None:
    config, table = read(name)
    model, cpu = both(name, ops)
    LayerFuzz(model, plain(config, near(table).__getitem__), cpu).check(requests)


def test_a_chat_goes_on_from_a_snapshot(place: tuple[str, PagedOps]) -> None:
    """In whole blocks of keys; the layer that drafts has some of its own beside them."""
    model, cpu = both(*place)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    kinds: dict[str, Any] = {"mtp": lambda kv: MtpDraft(model, kv)}
    bench, drafter = Bench(model, kinds), "off" if model.mtp is None else "mtp"
    ask = Ask(tuple(TOKENS[:290]), params, drafter)
    (found,) = bench.run([ask], Setting(pages=8), [Ask(tuple(TOKENS[:270]), params, drafter)])
    assert found.spec_stats.cached == 256 and answer(found) == answer(Bench(cpu, {}).alone(ask))
