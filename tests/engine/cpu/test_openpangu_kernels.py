"""openPangu 2.0 on the CPU kernels: against its reference in numpy, in every format, and whatever drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import family_tools
import numpy as np
import pytest
import texts
import torch
from kernel_tools import compiled
from layer_fuzz import FEW_AND_MANY, LayerFuzz
from pangu_2_reference import CONFIG, Pangu2
from safetensors.torch import load_file

from fastslow.engine.backends.cpu.pieces import limits
from fastslow.engine.model.base import kv_cache_for
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.rows import Rows, Segment

pytestmark = compiled
ODD: dict[str, Any] = {
    "index_topk": 300,
    "hidden_size": 546,
    "mhc_recur_norm": 3,
    "router_sliding_window": 5,
    "param_sink_number": 270,
}
ODD |= {"kv_lora_rank": 20, "q_lora_rank": 37, "v_head_dim": 10, "num_attention_heads": 3, "num_key_value_heads": 3}
ODD |= {"num_hidden_layers": 2, "dsa_layers": [0], "swa_layers": [1], "sliding_window_list": [300]}
ODD |= {"block_post_layernorm_idx": [1], "num_nextn_predict_layers": 0}
SMALL = ODD | {
    "index_topk": 24,
    "hidden_size": 32,
    "vocab_size": 32,
    "param_sink_number": 3,
    "num_nextn_predict_layers": 2,
}
SMALL |= {"swa_layers": [1, 2, 3], "sliding_window_list": [9, 12, 12]}
TOKENS = np.random.default_rng(3).integers(0, CONFIG["vocab_size"], 600)


@pytest.mark.parametrize("variant", [{}, ODD], ids=["as published", "other sizes"])
def test_logprobs_are_the_references(variant: dict[str, Any], tmp_path: Path) -> None:
    """More streams' numbers than a chunk multiplies, sinks than a block of keys has, channels that fill no vector."""
    reference, tokens = Pangu2(**variant), TOKENS.tolist()
    model = family_tools.load(reference.write(tmp_path), True)
    whole = texts.logits(model, tokens)
    wanted = torch.from_numpy(reference.logprobs(TOKENS))
    torch.testing.assert_close(whole.double().log_softmax(-1), wanted, rtol=0, atol=1e-4)
    assert texts.logits(model, tokens, [1, 2, 37, 553, *[1] * 7]).equal(whole)


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    folder, reference = tmp_path_factory.mktemp("openpangu"), Pangu2(**SMALL)
    weights = load_file(reference.write(folder / "own") / "model.safetensors")
    return LayerFuzz.of(folder, reference.c, weights, True)


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    fuzz.check(count)


def test_states_are_kept_of_rows_whose_logits_nobody_wants(tmp_path: Path) -> None:
    """The last layer's, too: its convolution of what heads saw."""
    model, tokens, found = family_tools.load(Pangu2(**SMALL).write(tmp_path), True), [*range(3, 27)], []
    for wanted in (range(20), ()):
        kv = kv_cache_for(model, 4)
        kv.open(0, tokens, None, 0)
        kv.reserve(0, 24)
        for first, stop, outputs in ((0, 20, wanted), (20, 24, range(4))):
            slots, context = kv.slots(0, first, stop), kv.slots(0, 0, first)
            places, parents = range(first, stop), range(-1, stop - first - 1)
            segment = Segment(tokens[first:stop], places, parents, slots, context, outputs=outputs)
            segment.running = kv.running(0, places, stop)
            out = model.forward(Rows.of([segment]), kv.storage)
        found.append(out.logits)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mhc_num_stream": 2}, "they have no room for it: streams=2 must be a whole number in 4..4"),
        ({"router_sliding_window": 17}, "they have no room for it: kernel=17 must be a whole number in 2..16"),
    ],
)
def test_what_the_kernels_do_not_run(changed: dict[str, Any], said: str) -> None:
    assert limits.unsupported(ModelConfig.from_json(CONFIG | changed)) == said
