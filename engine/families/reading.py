"""What the families read alike from config.json."""

from __future__ import annotations

from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import (
    LEAST_EPS,
    LEAST_THETA,
    MOST_EPS,
    MOST_HEAD_DIM,
    MOST_HEADS,
    MOST_LAYERS,
    MOST_THETA,
    MOST_WIDTH,
    ConfigJson,
    boolean,
    integer,
    integers,
    number,
    text,
)
from fastslow.engine.model.shape import Activation, DecoderShape, RopeScaling

FULL, SLIDING = "full_attention", "sliding_attention"
ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
KNOWN_ACTIVATIONS = " and ".join(map(repr, ACTIVATIONS))


def decoder(
    raw: ConfigJson,
    *,
    theta: float = 10000.0,
    tied: bool = False,
    head_dim: int | None = None,
    dense: bool = True,
) -> DecoderShape:
    """A dense decoder as Llama is, without biases. dense: some layer has a dense MLP.

    theta, tied, head_dim: what holds where config.json is silent; head_dim None is hidden_size / heads."""
    if not boolean(raw, "is_causal", True):
        raise ValueError("is_causal false is not supported: a row sees no later one")
    architectures = raw.get("architectures")
    name = architectures[0] if isinstance(architectures, list) else architectures
    partial = number(raw, "partial_rotary_factor", default=1.0)
    if partial != 1:
        raise ValueError(f"partial_rotary_factor {partial} is not supported, only 1 is")
    hidden = integer(raw, "hidden_size", most=MOST_WIDTH)
    heads = integer(raw, "num_attention_heads", most=MOST_HEADS)
    usual = head_dim or _head_dim(raw, hidden, heads)
    positions = integer(raw, "max_position_embeddings")
    base, scaling = _rope(raw, theta, positions)
    return DecoderShape(
        architecture=str(name),
        vocab_size=integer(raw, "vocab_size"),
        hidden_size=hidden,
        layers=integer(raw, "num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=integer(raw, "num_key_value_heads", default=heads),
        head_dim=integer(raw, "head_dim", usual, most=MOST_HEAD_DIM),
        max_positions=positions,
        intermediate_size=integer(raw, "intermediate_size", most=MOST_WIDTH) if dense else 0,
        rms_norm_eps=number(raw, "rms_norm_eps", 1e-6, LEAST_EPS, MOST_EPS),
        rope_theta=base,
        rope_scaling=scaling,
        tie_word_embeddings=boolean(raw, "tie_word_embeddings", tied),
        bos_id=next(iter(integers(raw, "bos_token_id")), None),
        eos_ids=integers(raw, "eos_token_id"),
        dtype=text(raw, "dtype", default=text(raw, "torch_dtype", default=None)),
        activation=_activation(raw),
    )


def _activation(raw: ConfigJson) -> Activation:
    name = raw.get("hidden_act", "silu")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"hidden_act {shown(name)} is not supported, only {KNOWN_ACTIVATIONS} are")
    return ACTIVATIONS[name]


def _head_dim(raw: ConfigJson, hidden: int, heads: int) -> int | None:
    if raw.get("head_dim") is None and hidden % heads:
        raise ValueError(
            f"hidden_size {hidden} must be a multiple of num_attention_heads {heads} where "
            "head_dim is missing"
        )
    return hidden // heads or None


def _rope(raw: ConfigJson, theta: float, positions: int) -> tuple[float, RopeScaling | None]:
    places = [raw.inside(name) for name in ("rope_scaling", "rope_parameters")]
    rope = places[0] or places[1]
    based = [place for place in (*places, raw) if "rope_theta" in place] or [raw]
    partial = number(rope, "partial_rotary_factor", default=1.0)
    if partial != 1:
        raise ValueError(f"partial_rotary_factor {partial} is not supported, only 1 is")
    base = number(based[0], "rope_theta", theta, LEAST_THETA, MOST_THETA)
    scaling = RopeScaling.read(rope, positions)
    rope.check_rest()
    return base, scaling


def window_of(raw: ConfigJson, usual: int | None = None, *, switch: bool = True) -> int:
    """`sliding_window` in tokens, 0 where it is null, or where `switch` is off."""
    value = raw.get("sliding_window", usual)
    if value is None or not switch:
        return 0
    return integer(raw, "sliding_window", usual)


def windows_by_type(raw: ConfigJson, window: int, usual: list[str]) -> tuple[int, ...]:
    """Every layer's window from `layer_types`, which is `usual` where missing; empty where all see all."""
    types = raw.get("layer_types")
    types = usual if types is None else types
    if not isinstance(types, list) or len(types) != len(usual):
        raise ValueError(f"layer_types {shown(types)} must be a list of {len(usual)} types")
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise ValueError(
                f"layer_types has {shown(kind)}, which is not one of {FULL}, {SLIDING}"
            )
        if kind == SLIDING and not window:
            raise ValueError(f"layer_types has {kind!r}, but no sliding_window is in use")
    windows = tuple(window if kind == SLIDING else 0 for kind in types)
    return windows if any(windows) else ()


def dense_layers(raw: ConfigJson) -> frozenset[int]:
    """`mlp_only_layers`."""
    return frozenset(integers(raw, "mlp_only_layers"))
