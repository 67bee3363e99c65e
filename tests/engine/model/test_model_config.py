"""Reading config.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from pangu_v2_tools import MOE

from fastslow.engine.backends.alike import AlikeLayers, grouped
from fastslow.engine.checkpoint.quantised import Scheme
from fastslow.engine.families import FAMILIES
from fastslow.engine.families.refused import REFUSED
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.family import family_of
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.tensors import active_parameters, parameters
from fastslow.tools.plan.published import KNOWN


def test_counts_are_the_published_ones() -> None:
    config = ModelConfig.from_json(KNOWN["openpangu-pro-moe-72b"])
    assert AlikeLayers.of(config).attention.head_dim == 128 and config.context == 131072
    assert parameters(config) / 1e9 == pytest.approx(71.99, abs=0.01)
    assert active_parameters(config) / 1e9 == pytest.approx(16.5, abs=0.01)
    assert active_parameters(config, 8) == active_parameters(config)
    assert active_parameters(config) - active_parameters(config, 7) == 48 * 3 * 5120 * 1344
    assert config.state_layout.token_bytes(torch.bfloat16) == 2 * 48 * 8 * 128 * 2
    config = ModelConfig.from_json(KNOWN["openpangu-r-72b"])  # "74B-A15B"
    assert round(parameters(config) / 1e9) == 74
    assert round(active_parameters(config) / 1e9) == 15
    config = ModelConfig.from_json(checkpoints.DENSE)
    assert config.routed is None
    assert parameters(config) == active_parameters(config) == active_parameters(config, 3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("architectures", ["XyzLMHeadModel"], "'XyzLMHeadModel' does not run here: `fastslow models` lists"),
        ("architectures", ["Qwen2MoeForCausalLM"], "the nearest that does is Qwen3MoeForCausalLM;"),
        ("architectures", ["Llama5ForConditionalGeneration"], "nearest .* is LlamaForCausalLM;"),
        ("architectures", ["GPT2LMHeadModel"], "its MLPs have no gate; the nearest .* is LlamaForCausalLM;"),
        ("architectures", ["GraniteMoeHybridForCausalLM"], "it has Mamba layers; the .* is GraniteForCausalLM;"),
        ("architectures", ["NemotronHForCausalLM"], "it has Mamba layers; the nearest .* is Qwen3_5ForCausalLM;"),
        (
            "architectures",
            ["Lfm3ForCausalLM"],
            "here: it has a gate for each head.*; the nearest .* is Lfm2ForCausalLM;",
        ),
        (
            "architectures",
            ["Qwen4ExpForConditionalGeneration"],
            "hashed n-gram .*; the nearest that does is Qwen3_5Moe",
        ),
        ("architectures", None, "architecture None does not run here"),
        ("hidden_act", "gelu", "hidden_act 'gelu' is not supported"),
        ("hidden_size", None, "hidden_size is missing"),
        ("vocab_size", -1, "vocab_size -1 must be a whole number of at least 1"),
        ("num_hidden_layers", 2.5, "num_hidden_layers 2.5 must be"),
        ("num_key_value_heads", 3, "num_attention_heads 4 must be a multiple of .* 3"),
        ("head_dim", 15, "head_dim 15 must be an even number"),
        ("num_experts", 15, "num_experts 15 must be a multiple of num_experts_per_tok 4"),
        ("mlp_only_layers", [7], r"mlp_only_layers \[7\] must be below num_hidden_layers 3"),
        ("mlp_only_layers", ["a"], "mlp_only_layers .* must be whole numbers"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps nan must be a finite number"),
        ("rope_theta", "big", "rope_theta 'big' must be a number"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings 'yes' must be true or false"),
        ("rope_scaling", {"type": "ntk", "factor": 2.0}, "'ntk' is not one of the kno"),
        ("rope_scaling", {"type": "linear"}, "factor is missing"),
        ("rope_scaling", "linear", "rope_scaling must be an object"),
        ("rope_scaling", {"type": "llama3", "factor": 2.0}, "low_freq_factor is missing"),
        ("partial_rotary_factor", 0.5, "partial_rotary_factor 0.5 is not supported"),
        ("torch_dtype", 4, "torch_dtype 4 must be a string"),
    ],
)
def test_refusals_name_field_value_and_limit(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.from_json({**checkpoints.MOGE, field: value})
    assert "\n" not in str(caught.value)


# As openPangu-R-7B-2512 says: the name of Embedded, and another network.
SAID: dict[str, Any] = {
    "qk_rope_dim": 32,
    "param_sink_number": 128,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 128,
}


@pytest.mark.parametrize("field", SAID)
def test_a_network_that_only_has_the_name_is_refused_for_each_field_alone(field: str) -> None:
    named = {**checkpoints.DENSE, "architectures": ["PanguEmbeddedForCausalLM"]}
    assert len(ModelConfig.from_json(named).layers) == 2
    for said in (SAID, {field: SAID[field]}):
        with pytest.raises(ValueError, match=r"changes the model .* PanguEmbeddedForCausalLM"):
            ModelConfig.from_json({**named, **said})


CHANGED: list[tuple[str, Any]] = [
    ("sliding_window", 4096),
    ("layer_types", ["full_attention", "linear_attention"]),
    ("rope_interleaved", True),
    ("hidden_activation", "gelu"),
    ("attn_output_gate", True),
    ("use_qk_norm", True),
    ("final_logit_softcapping", 30.0),
    ("embedding_multiplier", 12.0),
    ("logits_scaling", 8.0),
    ("num_experts", 8),
    ("kv_lora_rank", 512),
    ("qkv_bias", True),
    ("no_rope_layers", [1, 0]),
    ("conv_kernel_size", 4),
    ("rope_scaling", {"rope_type": "linear", "factor": 2.0, "mrope_section": [1, 2]}),
    ("rope_parameters", {"full_attention": {"rope_theta": 1e4}}),
    ("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    ("rope_scaling", {"rope_type": "ntk", "factor": 2.0}),
]
NAMED = ("mrope_section", "full_attention", "partial_rotary_factor", "ntk")
NEUTRAL: list[tuple[str, Any]] = [
    ("sliding_window", None),
    ("use_sliding_window", False),
    ("param_sink_number", 0),
    ("layer_types", ["full_attention"] * 2),
    ("rope_interleaved", False),
    ("logits_scaling", 1.0),
    ("use_qk_norm", False),
    ("rope_scaling", {"type": "linear", "rope_type": "linear", "factor": 1.0}),
    ("rope_scaling", {"type": "yarn", "factor": 16.0, "finetuned": True}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
    ("attention_dropout", 0.1),
    ("initializer_range", 0.02),
    ("pretraining_tp", 1),
]


@pytest.mark.parametrize(("field", "value"), CHANGED)
def test_a_field_that_changes_the_forward_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        ModelConfig.from_json({**checkpoints.DENSE, field: value})
    assert any(name in str(caught.value) for name in (field, *NAMED))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("field", "value"), NEUTRAL)
def test_a_field_that_does_nothing_is_not(field: str, value: Any, logged: list[str]) -> None:
    ModelConfig.from_json({**checkpoints.DENSE, field: value})
    assert not logged


def test_a_name_that_says_nothing_is_logged(logged: list[str]) -> None:
    config = ModelConfig.from_json({**checkpoints.DENSE, "merged_from": "a+b"})
    assert logged == ["fields of config.json that nothing reads: merged_from\n"]
    assert config == ModelConfig.from_json(checkpoints.DENSE)


LATE = {"use_sliding_window": True, "max_window_layers": 2}
SLOW = {"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types .* must be a list of 4"),
        ("mistral", {"sliding_window": 0}, "sliding_window 0 must be a whole number of at least 1"),
        ("smollm3", {"layer_types": ["sliding_attention"] * 4}, "no sliding_window is in use"),
        ("qwen2", {"qk_norm": True}, "qk_norm True changes the model"),
        ("smollm3", {"no_rope_layers": [1, 0, 2, 0]}, "must be a list of 0 and 1"),
        ("qwen3", {"num_experts": 4}, "num_experts 4 changes the model"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 32}, "shared_expert_intermediate_size"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step 0 must be"),
        ("qwen3_moe", LATE, "max_window_layers must be 0 where use_sliding_window is true"),
        ("qwen3_moe", {"use_qk_norm": False}, "use_qk_norm false is not known"),
        ("llama", {"is_causal": False}, "is_causal false is not supported"),
        ("gpt_oss", {"swiglu_limit": -1.0}, "swiglu_limit -1.0 must be"),
        ("gpt_oss", {"hidden_act": "gelu_pytorch_tanh"}, "'gelu_pytorch_tanh' is not supported"),
        ("gpt_oss", {"rope_scaling": SLOW}, "beta_fast 1.0 must be above beta_slow 2.0"),
        ("llama", {"head_dim": None, "hidden_size": 65}, "hidden_size 65 must be a multiple of"),
        ("pangu_v2", {"qk_rope_dim": 7}, "qk_rope_dim 7 must be even"),
        ("pangu_v2", {"v_channels": 32}, "v_channels 32 must be at most 24"),
        ("pangu_v2", {"num_experts_per_tok": 11}, "_tok 11 must be at most num_experts 10"),
        ("pangu_v2", {"rotary_layout": "odd"}, "rotary_layout 'odd' is not one of interleaved-fir"),
        ("pangu_v2", {"param_sink_number": -1}, "param_sink_number -1 must be a whole number of"),
    ],
)
def test_families_refuse_what_does_not_fit(family: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json({**checkpoints.FAMILIES, "pangu_v2": MOE}[family] | fields)


def test_what_published_configs_say_without_need_is_read() -> None:
    said = {"use_qk_norm": True, "qkv_bias": False, "shared_expert_intermediate_size": 0}
    raw = checkpoints.FAMILIES["qwen3_moe"]
    assert ModelConfig.from_json({**raw, **said}) == ModelConfig.from_json(raw)


def test_what_is_missing_is_as_in_transformers() -> None:
    plain = {**checkpoints.DENSE, "num_hidden_layers": 8}

    def read(name: str, **fields: Any) -> ModelConfig:
        raw = {**plain, "architectures": [f"{name}ForCausalLM"], **fields}
        return ModelConfig.from_json({k: v for k, v in raw.items() if v is not None})

    def windows(config: ModelConfig) -> list[int]:
        return [grouped(layer).window for layer in config.layers]

    assert windows(read("Mistral")) == [4096] * 8
    assert windows(read("Qwen2")) == [0] * 8
    assert grouped(read("Qwen2").layers[0]).qkv_bias
    late = read("Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=6)
    assert windows(late) == [0] * 6 + [5, 5]
    assert grouped(read("Qwen3", head_dim=None).layers[0]).head_dim == 128
    smol = read("SmolLM3", tie_word_embeddings=None, rope_theta=None)
    assert [n for n, layer in enumerate(smol.layers) if layer.rope is None] == [3, 7]
    assert (smol.tie_word_embeddings, smol.ropes[0].theta) == (True, 2e6)
    oss = read("GptOss", num_local_experts=8, rope_theta=None)
    (rope,) = oss.ropes
    assert (windows(oss), rope.theta, oss.context) == ([128, 0] * 4, 150000, 131072)
    assert rope.scaling is not None
    assert not rope.scaling.whole_pairs
    experts = {"num_experts": 8, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
    moe = read("Qwen3Moe", **experts, decoder_sparse_step=3)
    assert [n for n, layer in enumerate(moe.layers) if layer.routed] == [2, 5]
    assert moe.routed is not None
    assert isinstance(moe.routed.router, Router)
    assert not moe.routed.router.normed


def test_scaled_context_and_end_ids() -> None:
    scaling = {"type": "linear", "factor": 4.0}
    raw = {**checkpoints.DENSE, "rope_scaling": scaling, "eos_token_id": [2, 7]}
    config = ModelConfig.from_json(raw)
    assert config.context == 2048
    assert config.eos_ids == (2, 7) and config.bos_id == 1


def test_two_threads_may_open_their_first_model_at_once() -> None:
    program = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from threading import Barrier\n"
        "import fastslow\n"
        "from fastslow.engine.model.family import family_of\n"
        "begin = Barrier(4)\n"
        "def look(_):\n"
        "    begin.wait()\n"
        "    return family_of('LlamaForCausalLM')\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    assert len(set(map(id, pool.map(look, range(4))))) == 1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_only_stacked_experts_are_in_mxfp4(tmp_path: Path) -> None:
    raw = {**checkpoints.DENSE, "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="quant_method 'mxfp4', which is not one of the known"):
        Scheme.from_folder(tmp_path)


# Names in config.json and in headers of GGUF files.
REFUSED_NAMES = """
Mamba2ForCausalLM NemotronHForCausalLM nemotron_h_moe falcon-h1 FalconMambaForCausalLM BambaForCausalLM jamba plamo2
GraniteMoeHybridForCausalLM granitehybrid RwkvForCausalLM rwkv7 KimiLinearForCausalLM kimi-linear
DeepseekV4ForCausalLM Glm5NextForConditionalGeneration YoutuForCausalLM deepseek32 MiniMaxM1ForCausalLM
Qwen4ExpForConditionalGeneration LFM3 gemma3n Gemma3nForConditionalGeneration Llama4ForConditionalGeneration command-r
Cohere2ForCausalLM falcon PhiForCausalLM phi2 PhimoeForCausalLM Phi4MMForCausalLM bitnet LLaDAModelLM T5ForConditionalGeneration
Gemma2ForCausalLM MixtralForCausalLM OlmoeForCausalLM Glm4ForCausalLM glm4 BailingMoeV2ForCausalLM bailingmoe2
"""


def test_names_that_are_known_to_not_run() -> None:
    """Each has a reason; names of families that run, and of those near to one, have none."""
    ours = {name for family in FAMILIES for name in family.architectures}
    for name in REFUSED_NAMES.split():
        if name not in ours:  # some Granite 4 run
            with pytest.raises(ValueError, match=r"does not run here: (it|its|no) \w+ .*; .* do"):
                family_of(name)
    for name in ours - {"GraniteMoeHybridForCausalLM"} | {
        "Phi3ForCausalLM",
        "MiniMaxM2ForCausalLM",
        "Gemma4ForCausalLM",
    }:
        plain = name.lower().replace("_", "")
        assert not [refusal for refusal in REFUSED if plain.startswith(refusal.begins)]
