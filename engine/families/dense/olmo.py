"""Decoders with norms after sublayers alone: Olmo 2 and 3 (norms of all heads together; in 3, windows in three of four
layers, which rotate without scaling), EXAONE 4 (norms of each head; where there are windows, layers that see all do not
rotate)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.reading import (
    FULL,
    SLIDING,
    attending,
    decoder,
    feeding,
    norm_of,
    rope_fields,
    window_of,
    windows_by_type,
)
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_HEAD_NORMS, GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.rope import Rope
from fastslow.engine.model.norms import LayerNorms
from fastslow.engine.model.shape import DecoderShape, Layer

PATTERN = "sliding_window_pattern"
EVERY = 4  # of so many layers, one sees all


def _after(
    raw: ConfigJson,
    mixer: GroupedAttention,
    windows: tuple[int, ...],
    ropes: dict[bool, Rope | None],
) -> DecoderShape:
    """ropes: of layers with a window, and of those without."""
    norm = norm_of(raw, 1e-5)
    mixer = replace(mixer, query_norm=norm, key_norm=norm)
    layer = Layer(mixer, feeding(raw), LayerNorms(norm, before=False, after=True))
    each = (replace(mixer, window=window, rope=ropes[window > 0]) for window in windows)
    return decoder(raw, layer, norm=norm).mixing(each)


def _pattern(raw: ConfigJson, window: int) -> tuple[int, ...]:
    """By `layer_types`, else by `sliding_window_pattern`: every so many layers one sees all, or letters in turn, of
    which L is a window."""
    pattern, layers = raw.get(PATTERN), range(raw.layers)
    if isinstance(pattern, str) and pattern and not {*pattern} - {*"LG"}:
        local = [pattern[n % len(pattern)] == "L" for n in layers]
    else:
        every = raw.integer(PATTERN, EVERY) if window else 1
        local = [(n + 1) % every != 0 for n in layers]
    return windows_by_type(raw, window, [SLIDING if x and window else FULL for x in local])


def _olmo2(raw: ConfigJson) -> DecoderShape:
    return _olmo(raw, attending(raw, bias="attention_bias"), (0,) * raw.layers)


def _olmo3(raw: ConfigJson) -> DecoderShape:
    """A scaling without types of layers is that of layers that see all."""
    each, fields = raw.inside("rope_parameters"), rope_fields(raw)
    far, near = {**fields}, {n: x for n, x in fields.items() if n == "rope_theta"}
    if {FULL, SLIDING} & each.keys():
        far, near = {**each.inside(FULL), **raw.inside("rope_scaling")}, {**each.inside(SLIDING)}
    mixer, other = (
        attending(
            raw.changed(rope_scaling=x, rope_parameters=None), theta=500000.0, bias="attention_bias"
        )
        for x in (far, near)
    )
    return _olmo(raw, mixer, _pattern(raw, window_of(raw, 4096)), other.rope)


def _olmo(
    raw: ConfigJson, mixer: GroupedAttention, windows: tuple[int, ...], near: Rope | None = None
) -> DecoderShape:
    ropes = {True: near, False: mixer.rope}
    return _after(raw, replace(mixer, norms_whole=True), windows, ropes)


def _olmo_file(raw: ConfigJson) -> DecoderShape:
    """GGUF files of both have one name: those of Olmo 3 have windows."""
    return _olmo3(raw) if raw.get("sliding_window") else _olmo2(raw)


def _exaone4(raw: ConfigJson) -> DecoderShape:
    mixer, window = attending(raw), window_of(raw, 4096)
    ropes = {True: mixer.rope, False: None if window else mixer.rope}
    return _after(raw, mixer, _pattern(raw, window), ropes)


def _header(raw: dict[str, Any]) -> None:
    """Headers say for each layer whether it has a window; none without one."""
    raw.setdefault("sliding_window", None)
    pattern = raw.pop(PATTERN, None)
    if isinstance(pattern, list):
        raw["layer_types"] = [SLIDING if local else FULL for local in pattern]
    elif pattern is not None:
        raise ValueError(f"{PATTERN} {shown(pattern)} must be a list of true and false")


NAMES = GgufNames(
    "olmo2",
    {n: p for n, p in GGUF_LAYER.items() if n not in ("attn_norm", "ffn_norm")}
    | GGUF_HEAD_NORMS
    | {
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    fields={
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": PATTERN,
        "rope.scaling.yarn_attn_factor": "rope_scaling.attention_factor",
    },
    finish=_header,
)
OLMO2 = Family(("Olmo2ForCausalLM",), _olmo2)
OLMO3 = Family(("Olmo3ForCausalLM",), _olmo_file, NAMES)
EXAONE4 = Family(("Exaone4ForCausalLM",), _exaone4, replace(NAMES, architecture="exaone4"))
