"""openPangu 2.0 against its reference in numpy; and whatever drafts, the answers of plain decoding."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from engine_tools import Ask, Bench, Setting, answer
from family_tools import KERNELS, load
from gguf_openpangu import write_openpangu
from gguf_tools import setting
from layer_fuzz import FEW_AND_MANY, LayerFuzz, near
from layer_fuzz import load as loaded
from mtp_tools import SpiedMtp
from pangu_2_reference import CONFIG, Pangu2
from safetensors.torch import load_file

from fastslow.engine.kv.budget import context_bytes
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.model.tensors import active_parameters, parameters, tensor_shapes
from fastslow.engine.params import SamplingParams

OTHER: dict[str, Any] = {
    "index_topk": 70,
    "mhc_num_stream": 2,
    "mhc_recur_norm": 3,
    "router_sliding_window": 4,
    "n_shared_experts": 2,
    "dsa_layers": [3],
}
OTHER |= {"swa_layers": [1, 2], "sliding_window_list": [6, 30], "num_nextn_predict_layers": 0, "param_sink_number": 1}
SMALL = OTHER | {"index_topk": 24, "num_hidden_layers": 2, "dsa_layers": [0], "vocab_size": 32, "n_shared_experts": 1}
SMALL |= {"num_nextn_predict_layers": 3, "swa_layers": [1], "sliding_window_list": [9], "block_post_layernorm_idx": [0]}
TOKENS = np.random.default_rng(3).integers(0, CONFIG["vocab_size"], 600)


@pytest.mark.parametrize(("dtype", "atol", "count"), [("float32", 1e-4, 600), ("float64", 1e-9, 150)])
@pytest.mark.parametrize("variant", [{}, OTHER], ids=["as published", "other sizes"])
def test_logprobs_are_the_references(
    variant: dict[str, Any], dtype: str, atol: float, count: int, tmp_path: Path
) -> None:
    """In one chunk, and to the same bits in several and token by token at the end. Late rows choose what they see."""
    reference, tokens = Pangu2(**variant), TOKENS[:count]
    model = load(reference.write(tmp_path), False, dtype)
    whole = texts.logits(model, tokens.tolist())
    wanted = torch.from_numpy(reference.logprobs(tokens))
    assert wanted.std() > 1
    torch.testing.assert_close(whole.double().log_softmax(-1), wanted, rtol=0, atol=atol)
    assert texts.logits(model, tokens.tolist(), [1, 2, 37, count - 47, *[1] * 7]).equal(whole)


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    folder, reference = tmp_path_factory.mktemp("openpangu"), Pangu2(**SMALL)
    weights = load_file(reference.write(folder / "own") / "model.safetensors")
    one, other = (loaded(folder / n, reference.c, w) for n, w in (("own", weights), ("kin", near(weights))))
    return LayerFuzz(one, other)


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    fuzz.check(count)


@pytest.mark.parametrize("kernels", KERNELS)
def test_three_heads_draft_what_the_reference_does(kernels: bool, tmp_path: Path) -> None:
    """In a batch, over chunks of prompts and after rejected drafts; the last head drafts all tokens after the third."""
    reference, spied = Pangu2(index_topk=512), list[SpiedMtp]()
    model = load(reference.write(tmp_path), kernels)

    def spy(kv: KVCache) -> SpiedMtp:
        spied.append(SpiedMtp(model, kv))
        return spied[-1]

    def chain(tokens: list[int]) -> list[int]:
        text, last = list(tokens), len(tokens) - 2
        for head in range(3):
            state = reference.drafting(np.array(text))[head][last]
            text.append(int(reference.linear("lm_head", state, CONFIG["vocab_size"]).argmax()))
        return text[len(tokens) :]

    params = SamplingParams(max_tokens=12, ignore_eos=True)
    asks = [Ask(tuple(texts.tokens_of(n, n, 40)), params, "mtp", 5) for n in (5, 21, 40)]
    bench = Bench(model, {"mtp": spy})
    assert [*map(answer, bench.run(asks, Setting(prompt_rows=16)))] == [answer(bench.alone(ask)) for ask in asks]
    made = [(tokens, list(tree.tokens)) for tokens, tree in spied[0].made]
    assert len(made) > 20 and max(len(draft) for _, draft in made) > 3
    for tokens, draft in made[::3]:
        assert draft[:3] == chain(tokens)[: len(draft)]


FLASH = CONFIG | {
    "hidden_size": 2560, "intermediate_size": 9216, "num_hidden_layers": 46, "num_attention_heads": 48,
    "num_key_value_heads": 48, "vocab_size": 151552, "q_lora_rank": 1024, "kv_lora_rank": 512, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "first_k_dense_replace": 2, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "moe_intermediate_size": 1024, "param_sink_number": 128, "index_topk": 2048,
    "index_n_heads": 24, "index_head_dim": 128, "block_post_layernorm_idx": [0, *range(4, 40, 5)],
    "dsa_layers": [*range(0, 46, 3)], "swa_layers": [n for n in range(49) if n % 3 or n > 45],
    "sliding_window_list": [512] * 30 + [2048] * 3, "max_position_embeddings": 524288, "head_dim": 64,
}  # fmt: skip


def test_the_published_config() -> None:
    config = ModelConfig.from_json(FLASH)
    assert round(parameters(config) / 1e9, 1) == 91.6 and round(active_parameters(config) / 1e9, 1) == 5.8
    windows = [x.mixer.window for x in config.layers if isinstance(x.mixer, LatentAttention)]
    assert windows == [0 if n % 3 == 0 else 512 for n in range(46)]
    normed = [n for n, x in enumerate(config.layers) if x.streams is not None and x.streams.whole_norm is not None]
    assert normed == FLASH["block_post_layernorm_idx"]
    assert config.context == 524288
    assert RoutedUnits.of(config) == ("experts", 8, 0)
    state = config.state_layout
    assert context_bytes(state, torch.bfloat16, 1 << 17, 512) < 0.45 * state.token_bytes(torch.bfloat16) * (1 << 17)
    assert state.token_numbers == 49 * 576 + 16 * 128 and state.row_bytes(torch.float32) == 49 * 4 * (1024 + 512 + 6144)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mhc_num_stream": 17}, "mhc_num_stream 17 must be at most 16"),
        ({"mhc_num_stream": 0}, "mhc_num_stream 0 must be a whole number of at least 1"),
        ({"mhc_recur_norm": 65}, "mhc_recur_norm 65 must be at most 64"),
        ({"use_mhc": False}, "use_mhc False is not supported, only True is"),
        ({"sandwich_norm": False}, "sandwich_norm False is not supported, only True is"),
        ({"rope_interleave": True}, "rope_interleave True is not supported, only False is"),
        ({"router_sliding_window": 1}, "router_sliding_window 1 must be at least 2"),
        ({"router_sliding_window": 65}, "router_sliding_window 65 must be at most 64"),
        ({"q_lora_rank": None}, "convolutions need a latent of queries: q_lora_rank is 0"),
        ({"param_sink_number": 65537}, "param_sink_number 65537 must be at most 65536"),
        ({"block_post_layernorm_idx": [4]}, r"block_post_layernorm_idx \[4\] must be below num_hidden_layers 4"),
        ({"dsa_layers": [0, 1]}, "dsa_layers has layer 1, which is one of swa_layers"),
        ({"swa_layers": [1, 2, 7]}, r"sliding_window_list \[6, 6, 9, 9, 9\] must have a window for each of the 3 .*"),
        ({"swa_layers": [1, 2, 4, 5, 7]}, "swa_layers has 7, but must be below 7, the number of layers"),
        ({"sliding_window_list": [6, 6, 0, 9, 9]}, "a window 0 must be a whole number of at least 1"),
        ({"sliding_window_list": None}, "a window is missing"),
        ({"index_head_dim": 6}, "index_head_dim 6 must be even and at least 8, the dims that rotate"),
        ({"index_topk": 0}, "index_topk 0 must be a whole number of at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 must be a whole number of at least 1"),
        ({"n_group": 4, "topk_group": 2}, "n_group 4 must divide the 6 experts"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types has 'full_attention' for layer 1, unlike swa_layers"),
        ({"layer_types": 5}, "layer_types 5 must be a list of 4 types"),
        ({"mhc_gate": 1}, "mhc_gate 1 changes the model in a way that .* does not know here"),
    ],
)
def test_configs_that_do_not_fit(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        ModelConfig.from_json(CONFIG | changed)


def test_fields_that_are_not_said() -> None:
    config = ModelConfig.from_json(CONFIG)
    types = ["sliding_attention" if n in CONFIG["swa_layers"] else "full_attention" for n in range(4)]
    same = {"layer_types": types, "topk_method": "noaux_tc", "param_sink_with_value": True}
    for said in ({"sliding_window_list": None, "sliding_window": 6}, {"dsa_layers": None}, same):
        assert ModelConfig.from_json(CONFIG | said).layers == config.layers
    assert "indexer" not in " ".join(tensor_shapes(ModelConfig.from_json(CONFIG | {"dsa_layers": []})))
    assert ModelConfig.from_json(CONFIG | {"architectures": ["PanguV2MoEForCausalLM"]}).streams is not None


UNSAID = {"bos_id", "eos_ids"}


@pytest.mark.parametrize("older", [False, True])
def test_a_gguf_file_is_the_folder_that_it_was_made_from(older: bool, tmp_path: Path) -> None:
    """In files of ik_llama.cpp; older ones have keys' and values' matrices in one, too."""
    folder = Pangu2().write(tmp_path / "model")
    file = write_openpangu(folder, tmp_path / "m.gguf", older=older)
    ours, theirs = ModelConfig.from_folder(file), ModelConfig.from_folder(folder)
    assert {x.name for x in fields(ours) if getattr(ours, x.name) != getattr(theirs, x.name)} == UNSAID
    tokens = TOKENS[:40].tolist()
    found, wanted = (texts.logits(load(path, False), tokens) for path in (file, folder))
    assert found.equal(wanted)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("mhc_num_stream", 40, "mhc_num_stream 40 must be at most 16"),
        ("swa_layers", [1, 2, 4], "sliding_window_list .* must have a window for each of the 3 swa_layers"),
        ("expert_gating_func", 1, "expert_gating_func 1 is not supported, only 2 is"),
        ("attention.key_length", 8, "qk_nope_head_dim 0 must be a whole number of at least 1"),
        ("attention.indexer.key_length", 6, "index_head_dim 6 must be even and at least 8, the dims that rotate"),
    ],
)
def test_headers_that_do_not_fit(key: str, value: Any, said: str, tmp_path: Path) -> None:
    folder = Pangu2().write(tmp_path / "model")
    file = write_openpangu(folder, tmp_path / "m.gguf", change=setting(f"openpangu.{key}", value))
    with pytest.raises(ValueError, match=said) as caught:
        load(file, False)
    assert "\n" not in str(caught.value)


def test_layers_of_one_model_stand_in_as_many_streams() -> None:
    config = ModelConfig.from_json(CONFIG)
    streams = config.streams
    assert streams is not None
    mixed = config.each(lambda n, x: replace(x, streams=replace(streams, count=2)) if n else x)
    with pytest.raises(ValueError, match="its layers stand in different numbers of residual streams"):
        mixed.check()
