"""Fields of config.json that the families read alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastslow.engine.host.files import shown
from fastslow.engine.model.config import ROTATED
from fastslow.engine.model.family import (
    LEAST_EPS,
    LEAST_THETA,
    MOST_EPS,
    MOST_HEAD_DIM,
    MOST_HEADS,
    MOST_LAYERS,
    MOST_STRETCH,
    MOST_THETA,
    MOST_WIDTH,
    ConfigJson,
    boolean,
    integer,
    integers,
    number,
    text,
)
from fastslow.engine.model.ffn.dense import DenseMlp
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
HIDDEN_ACTS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "factors", "proportional")
ORIGINAL = "original_max_position_embeddings"


def halves(rows: int, _: object) -> dict[str, slice]:
    """The rows of a gate and an up matrix below each other, see `GgufNames.parts`."""
    return {"gate_proj": slice(rows // 2), "up_proj": slice(rows // 2, None)}


def layer_count(raw: ConfigJson) -> int:
    """`num_hidden_layers`."""
    return integer(raw, "num_hidden_layers", most=MOST_LAYERS)


def expect(raw: ConfigJson, values: Mapping[str, Any]) -> None:
    """Check fields that may have one value only, where they are there: lists of it, too, one for each layer."""
    for name, value in values.items():
        found = raw.get(name)
        alike = [value] * layer_count(raw) if isinstance(found, list) else value
        if found is not None and found != alike:
            raise ValueError(f"{name} {shown(found)} is not supported, only {value} is")


def norm_of(raw: ConfigJson, usual: float = 1e-6) -> RmsNorm:
    """An RMSNorm with `rms_norm_eps`."""
    return RmsNorm(number(raw, "rms_norm_eps", usual, LEAST_EPS, MOST_EPS))


def attending(
    raw: ConfigJson,
    *,
    theta: float = 10000.0,
    head_dim: int | None = None,
    partial: float | None = None,
) -> GroupedAttention:
    """Attention as Llama has it, without biases.

    theta, head_dim, partial: what holds where config.json is silent; head_dim None is hidden_size / heads, partial None
    rotates whole heads, and config.json may not say else."""
    hidden = integer(raw, "hidden_size", most=MOST_WIDTH)
    heads = integer(raw, "num_attention_heads", most=MOST_HEADS)
    usual = head_dim or _head_dim(raw, hidden, heads)
    dim = integer(raw, "head_dim", usual, most=MOST_HEAD_DIM)
    positions = integer(raw, "max_position_embeddings")
    base, scaling, share = rotation_of(raw, theta, partial, positions)
    turning = int(dim * share)
    width = 0 if share == 1 else turning
    if scaling is not None and scaling.kind == "proportional":
        scaling, width = replace(scaling, pairs=turning // 2), 0
    if share != 1 and turning < 2:
        raise ValueError(f"partial_rotary_factor {share} of head_dim {dim} must be at least 2 dims")
    return GroupedAttention(
        heads,
        integer(raw, "num_key_value_heads", default=heads),
        dim,
        Rope(dim, base, positions, scaling, width),
    )


def feeding(raw: ConfigJson, *, bias: bool = False) -> DenseMlp:
    """A dense MLP of `intermediate_size`."""
    return DenseMlp(integer(raw, "intermediate_size", most=MOST_WIDTH), activation_of(raw), bias)


def decoder(
    raw: ConfigJson, layer: Layer | None = None, *, norm: Norm | None = None, tied: bool = False
) -> DecoderShape:
    """A decoder whose layers are all alike; `DecoderShape.each` changes some. None: as Llama has them, without biases.

    norm: the kind of all norms of hidden states; None: RMSNorm. tied: what holds where config.json is silent."""
    if not boolean(raw, "is_causal", True):
        raise ValueError("is_causal false is not supported: a row sees no later one")
    architectures = raw.get("architectures")
    name = architectures[0] if isinstance(architectures, list) else architectures
    norm = norm_of(raw) if norm is None else norm
    layer = Layer(attending(raw), feeding(raw)) if layer is None else layer
    if layer.norms.kind not in (USUAL_NORM, norm):
        raise ValueError(
            f"its layers have norms of kind {layer.norms.kind}, the decoder has {norm}: name one"
        )
    layer = replace(layer, norms=replace(layer.norms, kind=norm))
    return DecoderShape(
        architecture=str(name),
        vocab_size=integer(raw, "vocab_size"),
        hidden_size=integer(raw, "hidden_size", most=MOST_WIDTH),
        layers=(layer,) * layer_count(raw),
        max_positions=integer(raw, "max_position_embeddings"),
        norm=norm,
        tie_word_embeddings=boolean(raw, "tie_word_embeddings", tied),
        bos_id=next(iter(integers(raw, "bos_token_id")), None),
        eos_ids=integers(raw, "eos_token_id"),
        dtype=text(raw, "dtype", default=text(raw, "torch_dtype", default=None)),
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


def rope_fields(raw: ConfigJson) -> dict[str, Any]:
    """The fields of `rope_scaling`, else of `rope_parameters`; the base of the second counts for both."""
    first, second = raw.inside("rope_scaling"), raw.inside("rope_parameters")
    return {**{n: x for n, x in second.items() if n == "rope_theta" or not first}, **first}


def rotation_of(
    raw: ConfigJson, theta: float, usual: float | None, positions: int
) -> tuple[float, RopeScaling | None, float]:
    """Its base, scaling, and the share of a head that rotates; theta, usual: see `attending`."""
    places = [raw.inside(name) for name in ("rope_scaling", "rope_parameters")]
    rope = places[0] or places[1]
    based = [place for place in (*places, raw) if "rope_theta" in place] or [raw]
    place = rope if "partial_rotary_factor" in rope else raw
    partial = number(place, "partial_rotary_factor", usual or 1.0)
    proportional = rope.get("rope_type") == "proportional"
    if usual is None and partial != 1 and not proportional or partial > 1:
        allowed = "only 1 is" if usual is None else "it is at most 1"
        raise ValueError(f"partial_rotary_factor {partial} is not supported, {allowed}")
    base = number(based[0], "rope_theta", theta, LEAST_THETA, MOST_THETA)
    scaling = _scaling(raw, rope, positions)
    if (
        usual is not None
    ):  # of the places of a token in images and films: a text has one place for all three
        rope.get("mrope_section"), rope.get("mrope_interleaved")
    rope.check_rest()
    return base, scaling, partial


def _scaling(raw: ConfigJson, rope: Mapping[str, Any], max_positions: int) -> RopeScaling | None:
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
    factor = number(rope, "factor", usual, most=MOST_STRETCH)
    if factor < 1:
        raise ValueError(f"rope_scaling factor {factor} must be at least 1")
    if kind == "llama3":
        return _llama3(rope, factor)
    if kind == "yarn":
        return _yarn(rope, factor, max_positions)
    rope.get(ORIGINAL)  # often there, and means nothing
    return RopeScaling(kind, factor)


def _llama3(rope: Mapping[str, Any], factor: float) -> RopeScaling:
    low = number(rope, "low_freq_factor", most=MOST_STRETCH)
    high = number(rope, "high_freq_factor", most=MOST_STRETCH)
    if high <= low:
        raise ValueError(f"high_freq_factor {high} must be above low_freq_factor {low}")
    original = integer(rope, ORIGINAL)
    return RopeScaling("llama3", factor, low, high, original)


def _yarn(rope: Mapping[str, Any], factor: float, max_positions: int) -> RopeScaling:
    """With the defaults of transformers; a field of 0 counts as missing there."""
    fast = number(rope, "beta_fast", 32.0, most=MOST_STRETCH)
    slow = number(rope, "beta_slow", 1.0, most=MOST_STRETCH)
    if fast <= slow:
        raise ValueError(f"beta_fast {fast} must be above beta_slow {slow}")
    mscale, of_all = (
        number(rope, name) if rope.get(name) else 0.0 for name in ("mscale", "mscale_all_dim")
    )
    usual = stretch(factor, 1.0)
    if mscale and of_all:
        usual = stretch(factor, mscale) / stretch(factor, of_all)
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=integer(rope, ORIGINAL, max_positions),
        fast_turns=fast,
        slow_turns=slow,
        whole_pairs=boolean(rope, "truncate", True),
        attention_factor=number(rope, "attention_factor", usual, most=MOST_STRETCH),
    )


def _longrope(raw: ConfigJson, rope: Mapping[str, Any], max_positions: int) -> RopeScaling:
    """The length before scaling stands outside of the object, else inside."""
    inside = rope.get(ORIGINAL)
    original = integer(raw, ORIGINAL, inside, least=2)
    factor = number(rope, "factor", max_positions / original, most=MOST_STRETCH)
    usual = math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original))
    return RopeScaling(
        "longrope",
        factor,
        original_max_positions=original,
        attention_factor=number(rope, "attention_factor", usual, most=MOST_STRETCH),
        factors=_factors(rope, "short_factor"),
        long_factors=_factors(rope, "long_factor"),
    )


def _factors(rope: Mapping[str, Any], name: str) -> tuple[float, ...]:
    each = rope.get(name)
    some = each if isinstance(each, list) else []
    return tuple(number({name: x}, name, most=MOST_STRETCH) for x in some)


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
    return integer(raw, "sliding_window", usual)


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
    step = integer(raw, "decoder_sparse_step", 1)
    return frozenset(range(step - 1, layer_count(raw), step)) - dense_layers(raw)


def dense_layers(raw: ConfigJson) -> frozenset[int]:
    """`mlp_only_layers`."""
    return listed_layers(raw, "mlp_only_layers")


def listed_layers(raw: ConfigJson, name: str) -> frozenset[int]:
    """The layers that a field lists; none where it is missing."""
    found, layers = frozenset(integers(raw, name)), layer_count(raw)
    if any(n >= layers for n in found):
        named = shown(sorted(found))
        raise ValueError(f"{name} {named} must be below num_hidden_layers {layers}")
    return found
