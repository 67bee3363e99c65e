"""Fields of config.json that the families read alike."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from fastslow.engine.host.files import shown
from fastslow.engine.model.config import ROTATED
from fastslow.engine.model.config_json import MOST_STRETCH, ConfigJson
from fastslow.engine.model.family import architecture_in
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import GroupRouter, Router
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.rope import Rope, RopeScaling
from fastslow.engine.model.norms import USUAL_NORM, Norm, RmsNorm
from fastslow.engine.model.ops import Activation
from fastslow.engine.model.shape import DecoderShape, Layer

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
TOWERS = tuple(  # beginnings of names of tensors for images and sound, which files have beside the text's
    f"{before}{name}."
    for before in ("", "model.")
    for name in (
        *("visual", "vision_tower", "vision_model", "vision_embedder", "embed_vision"),
        *("audio_tower", "embed_audio", "multi_modal_projector"),
    )
)
TEXT_PART = (  # names in files of models for text and images
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
NUMBERED = ((".w1.", ".gate_proj."), (".w3.", ".up_proj."), (".w2.", ".down_proj."))  # of MLPs
HIDDEN_ACTS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "factors", "proportional")
ORIGINAL = "original_max_position_embeddings"
LEAST_EPS, MOST_EPS = 1e-20, 1.0
LEAST_THETA, MOST_THETA = 1.0, 1e15


def halves(rows: int, _: object) -> dict[str, slice]:
    """The rows of a gate and an up matrix below each other, see `GgufNames.parts`."""
    return {"gate_proj": slice(rows // 2), "up_proj": slice(rows // 2, None)}


def norm_of(raw: ConfigJson, usual: float = 1e-6, field: str = "rms_norm_eps") -> RmsNorm:
    """An RMSNorm with an eps of config.json."""
    return RmsNorm(raw.number(field, usual, LEAST_EPS, MOST_EPS))


def attending(
    raw: ConfigJson,
    *,
    theta: float = 10000.0,
    head_dim: int | None = None,
    partial: float | None = None,
    bias: str | None = None,
    biased: bool = False,
    head_norm: Norm | None = None,
) -> GroupedAttention:
    """Attention as Llama has it.

    theta, head_dim, partial, biased: what holds where config.json is silent; head_dim None is hidden_size / heads,
    partial None rotates whole heads, and config.json may not say else. bias: the field that switches biases of all four
    matrices on; None: there are none. head_norm: of queries and keys; None: there is none."""
    hidden = raw.width("hidden_size")
    heads = raw.heads("num_attention_heads")
    dim = raw.head_dim("head_dim", head_dim or _head_dim(raw, hidden, heads))
    positions = raw.integer("max_position_embeddings")
    base, scaling, share = rotation_of(raw, theta, partial, positions)
    turning = int(dim * share)
    width = 0 if share == 1 else turning
    if scaling is not None and scaling.kind == "proportional":
        scaling, width = replace(scaling, pairs=turning // 2), 0
    if share != 1 and turning < 2:
        raise ValueError(f"partial_rotary_factor {share} of head_dim {dim} must be at least 2 dims")
    has_bias = bias is not None and raw.boolean(bias, biased)
    return GroupedAttention(
        heads,
        raw.integer("num_key_value_heads", default=heads),
        dim,
        Rope(dim, base, positions, scaling, width),
        query_norm=head_norm,
        key_norm=head_norm,
        qkv_bias=has_bias,
        out_bias=has_bias,
    )


def feeding(raw: ConfigJson, *, bias: bool = False) -> DenseMlp:
    """A dense MLP of `intermediate_size`."""
    return DenseMlp(raw.width("intermediate_size"), activation_of(raw), bias)


def mixture(
    raw: ConfigJson,
    router: GroupRouter | Router,
    experts: str = "num_experts",
    width: str = "moe_intermediate_size",
    shared: int = 0,
) -> RoutedExperts:
    """Routed experts and a shared one, without biases. experts, width: fields of their number, and of the width of
    each. shared: the width of the shared one; 0: there is none."""
    act = activation_of(raw)
    expert, own = DenseMlp(raw.width(width), act), DenseMlp(shared, act) if shared else None
    return RoutedExperts(router, raw.experts(experts), expert, own)


def with_dense(
    raw: ConfigJson, shape: DecoderShape, dense: Collection[int], bias: bool = False
) -> DecoderShape:
    """The same with an MLP of `intermediate_size` in these layers."""
    if not dense:
        return shape
    mlp = feeding(raw, bias=bias)
    return shape.each(lambda n, layer: replace(layer, ffn=mlp) if n in dense else layer)


def decoder(
    raw: ConfigJson, layer: Layer | None = None, *, norm: Norm | None = None, tied: bool = False
) -> DecoderShape:
    """A decoder whose layers are all alike; `DecoderShape.each` changes some. None: as Llama has them, without biases.

    norm: the kind of all norms of hidden states; None: RMSNorm. tied: what holds where config.json is silent."""
    if not raw.boolean("is_causal", True):
        raise ValueError("is_causal false is not supported: a row sees no later one")
    norm = norm_of(raw) if norm is None else norm
    layer = Layer(attending(raw), feeding(raw)) if layer is None else layer
    if layer.norms.kind not in (USUAL_NORM, norm):
        raise ValueError(
            f"its layers have norms of kind {layer.norms.kind}, the decoder has {norm}: name one"
        )
    layer = replace(layer, norms=replace(layer.norms, kind=norm))
    return DecoderShape(
        architecture=str(architecture_in(raw)),
        vocab_size=raw.integer("vocab_size"),
        hidden_size=raw.width("hidden_size"),
        layers=(layer,) * raw.layers,
        max_positions=raw.integer("max_position_embeddings"),
        norm=norm,
        tie_word_embeddings=raw.boolean("tie_word_embeddings", tied),
        bos_id=next(iter(raw.integers("bos_token_id")), None),
        eos_ids=raw.integers("eos_token_id"),
        dtype=raw.text("dtype", raw.text("torch_dtype")),
        left_out=TOWERS,
    )


def activation_of(raw: ConfigJson) -> Activation:
    """`hidden_act`."""
    name = raw.get("hidden_act", "silu")
    if not isinstance(name, str) or name not in HIDDEN_ACTS:
        known = " and ".join(map(repr, HIDDEN_ACTS))
        raise ValueError(f"hidden_act {shown(name)} is not supported, only {known} are")
    return HIDDEN_ACTS[name]


def _head_dim(raw: ConfigJson, hidden: int, heads: int) -> int | None:
    if raw.get("head_dim") is None and hidden % heads:
        raise ValueError(
            f"hidden_size {hidden} must be a multiple of num_attention_heads {heads} where "
            "head_dim is missing"
        )
    return hidden // heads or None


def rope_fields(raw: ConfigJson) -> ConfigJson:
    """The fields of `rope_scaling`, else of `rope_parameters`; the base of the second counts for both."""
    first, second = raw.inside("rope_scaling"), raw.inside("rope_parameters")
    kept = {n: x for n, x in second.items() if n == "rope_theta" or not first}
    return ConfigJson({**kept, **first})


def rotation_of(
    raw: ConfigJson, theta: float, usual: float | None, positions: int
) -> tuple[float, RopeScaling | None, float]:
    """Its base, scaling, and the share of a head that rotates; theta, usual: see `attending`."""
    places = [raw.inside(name) for name in ("rope_scaling", "rope_parameters")]
    rope = places[0] or places[1]
    based = [place for place in (*places, raw) if "rope_theta" in place] or [raw]
    place = rope if "partial_rotary_factor" in rope else raw
    partial = place.number("partial_rotary_factor", usual or 1.0)
    proportional = rope.get("rope_type") == "proportional"
    if usual is None and partial != 1 and not proportional or partial > 1:
        allowed = "only 1 is" if usual is None else "it is at most 1"
        raise ValueError(f"partial_rotary_factor {partial} is not supported, {allowed}")
    base = based[0].number("rope_theta", theta, LEAST_THETA, MOST_THETA)
    scaling = _scaling(raw, rope, positions)
    if usual is not None:  # places of a token in images and films: a text has one for all three
        rope.get("mrope_section"), rope.get("mrope_interleaved")
    rope.check_rest()
    return base, scaling, partial


def _scaling(raw: ConfigJson, rope: ConfigJson, max_positions: int) -> RopeScaling | None:
    """None where it stretches nothing."""
    older = rope.get("type")
    kind = rope.get("rope_type") or older or "default"
    if kind in ("default", "none"):
        return None
    if kind in ("longrope", "su"):  # the second is an older name
        return _longrope(raw, rope, max_positions)
    if kind not in SCALINGS:
        raise ValueError(
            f"rope_scaling type {shown(kind)} is not one of the known {', '.join(SCALINGS)}"
        )
    if kind == "factors":
        return RopeScaling(kind, 1.0, factors=_factors(rope, kind))
    usual = 1.0 if kind == "proportional" else None
    factor = rope.number("factor", usual, most=MOST_STRETCH)
    if factor < 1:
        raise ValueError(f"rope_scaling factor {factor} must be at least 1")
    if kind == "llama3":
        return _llama3(rope, factor)
    if kind == "yarn":
        return _yarn(rope, factor, max_positions)
    rope.get(ORIGINAL)  # often there, and means nothing
    return RopeScaling(kind, factor)


def _llama3(rope: ConfigJson, factor: float) -> RopeScaling:
    low = rope.number("low_freq_factor", most=MOST_STRETCH)
    high = rope.number("high_freq_factor", most=MOST_STRETCH)
    if high <= low:
        raise ValueError(f"high_freq_factor {high} must be above low_freq_factor {low}")
    original = rope.integer(ORIGINAL)
    return RopeScaling("llama3", factor, low, high, original)


def _yarn(rope: ConfigJson, factor: float, max_positions: int) -> RopeScaling:
    """With the defaults of transformers; a field of 0 counts as missing there."""
    fast = rope.number("beta_fast", 32.0, most=MOST_STRETCH)
    slow = rope.number("beta_slow", 1.0, most=MOST_STRETCH)
    if fast <= slow:
        raise ValueError(f"beta_fast {fast} must be above beta_slow {slow}")
    mscale, of_all = (
        rope.number(name) if rope.get(name) else 0.0 for name in ("mscale", "mscale_all_dim")
    )
    usual = stretch(factor, 1.0)
    if mscale and of_all:
        usual = stretch(factor, mscale) / stretch(factor, of_all)
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=rope.integer(ORIGINAL, max_positions),
        fast_turns=fast,
        slow_turns=slow,
        whole_pairs=rope.boolean("truncate", True),
        attention_factor=rope.number("attention_factor", usual, most=MOST_STRETCH),
    )


def _longrope(raw: ConfigJson, rope: ConfigJson, max_positions: int) -> RopeScaling:
    """The length before scaling stands outside of the object, else inside."""
    inside = rope.get(ORIGINAL)
    original = raw.integer(ORIGINAL, inside, least=2)
    factor = rope.number("factor", max_positions / original, most=MOST_STRETCH)
    usual = math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original))
    return RopeScaling(
        "longrope",
        factor,
        original_max_positions=original,
        attention_factor=rope.number("attention_factor", usual, most=MOST_STRETCH),
        factors=_factors(rope, "short_factor"),
        long_factors=_factors(rope, "long_factor"),
    )


def _factors(rope: ConfigJson, name: str) -> tuple[float, ...]:
    each = rope.get(name)
    some = each if isinstance(each, list) else []
    return tuple(ConfigJson({name: x}).number(name, most=MOST_STRETCH) for x in some)


def stretch(factor: float, mscale: float) -> float:
    """YaRN's growth of magnitudes."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1


def share_rotated(raw: dict[str, Any]) -> None:
    """Make the rotated dims of a header's heads the share that config.json says."""
    hidden, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    dim, rotated = raw.get("head_dim"), raw.pop(ROTATED, None)
    if dim is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        dim = hidden // heads
    if not isinstance(rotated, int) or not isinstance(dim, int) or not 0 < rotated <= dim:
        raise ValueError(
            f"rope.dimension_count {shown(rotated)} must be from 1 to attention.key_length {shown(dim)}"
        )
    raw["partial_rotary_factor"] = rotated / dim


def window_of(raw: ConfigJson, usual: int | None = None, *, switch: bool = True) -> int:
    """`sliding_window` in tokens, 0 where it is null, or where `switch` is off."""
    value = raw.get("sliding_window", usual)
    if value is None or not switch:
        return 0
    return raw.integer("sliding_window", usual)


def windows_by_type(raw: ConfigJson, window: int, usual: list[str]) -> tuple[int, ...]:
    """Every layer's window from `layer_types`, which is `usual` where missing; 0 where it sees all."""
    types = layer_types(raw, (FULL, SLIDING), usual)
    if SLIDING in types and not window:
        raise ValueError(f"layer_types has {SLIDING!r}, but no sliding_window is in use")
    return tuple(window if kind == SLIDING else 0 for kind in types)


def layer_types(
    raw: ConfigJson, known: tuple[str, ...], usual: list[str], field: str = "layer_types"
) -> list[str]:
    """`layer_types`, or another field: one of the known types for each layer, `usual` where missing."""
    found = raw.get(field)
    types = usual if found is None else found
    if not isinstance(types, list) or len(types) != len(usual):
        raise ValueError(f"{field} {shown(types)} must be a list of {len(usual)} types")
    for kind in types:
        if kind not in known:
            raise ValueError(f"{field} has {shown(kind)}, which is not one of {', '.join(known)}")
    return types


def sparse_layers(raw: ConfigJson) -> frozenset[int]:
    """The layers with experts by `decoder_sparse_step`, without `mlp_only_layers`."""
    step = raw.integer("decoder_sparse_step", 1)
    return frozenset(range(step - 1, raw.layers, step)) - dense_layers(raw)


def dense_layers(raw: ConfigJson) -> frozenset[int]:
    """`mlp_only_layers`."""
    return listed_layers(raw, "mlp_only_layers")


def listed_layers(raw: ConfigJson, name: str) -> frozenset[int]:
    """The layers that a field lists; none where it is missing."""
    found, layers = frozenset(raw.integers(name)), raw.layers
    if any(n >= layers for n in found):
        named = shown(sorted(found))
        raise ValueError(f"{name} {named} must be below num_hidden_layers {layers}")
    return found
