"""A model's config, read from config.json or from the header of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from fastslow.engine.host.files import about, read_object, shown, text_part
from fastslow.engine.host.gguf_file import BLOCKS, DRAFTS, GgufTensor, is_gguf, read_gguf
from fastslow.engine.kv.state.layout import SharedState, rows_of
from fastslow.engine.model.config_json import MOST, ConfigJson
from fastslow.engine.model.family import (
    GGUF_FIELDS,
    Fields,
    GgufNames,
    architecture_in,
    family_of,
    gguf_family,
)
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.parts import Mixer
from fastslow.engine.model.shape import DecoderShape
from fastslow.engine.text.tokenizer_files.config import GgufVocabulary

ROPE_FACTORS = "rope_freqs.weight"  # float32 [head_dim / 2]: what rotary frequencies are divided by
LISTS = {"rope_factors_short.weight": "short_factor", "rope_factors_long.weight": "long_factor"}
OWN_DTYPES = {"F32": "float32", "F16": "float16"}  # a file of other numbers runs as bfloat16 does
ROTATED = "rotated_dims"  # of a head, where a family rotates a part of it
HARMLESS = (  # fields after the architecture's name that are checked elsewhere, or change nothing
    *("vocab_size", "rope.dimension_count", "attention.value_length", "rope.scaling.finetuned"),
    "tensor_data_layout",
)
NEUTRAL = {  # the only values that change nothing here
    "attention.causal": True,
    "rope.scaling.attn_factor": 1.0,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
}


@dataclass(frozen=True, slots=True)
class ModelConfig(DecoderShape):
    """The shape of a decoder, as the family that config.json names reads it."""

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read `folder`/config.json, or the header of a GGUF file. ValueError in one sentence."""
        if is_gguf(folder):
            with about(folder):
                return cls.from_json(header_config(folder))
        path = folder / "config.json"
        if not folder.is_dir():
            raise ValueError(f"model folder {folder} does not exist")
        if not path.is_file():
            inside = sorted(folder.glob("*.gguf"))
            more = f"; for the GGUF file in it give {inside[0]}" if inside else ""
            raise ValueError(f"{folder} has no config.json{more}")
        raw = read_object(path)
        with about(path):
            return cls.from_json(raw)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """From the fields of a config.json. ValueError names the field, its value, the limit."""
        name = architecture_in(raw)
        family = family_of(name)
        known = ConfigJson(text_part(raw), name)
        shape = family.read(known)
        known.check_rest()
        config = cls(**{x.name: getattr(shape, x.name) for x in fields(shape) if x.init})
        config.check()
        return config

    def check(self) -> None:
        """ValueError in one sentence where parts do not fit each other."""
        if wrong := next(self._misfits(), None):
            raise ValueError(wrong)

    def _misfits(self) -> Iterator[str]:
        if self.context > MOST:
            yield (
                f"max_position_embeddings {self.max_positions}, times the rope_scaling factor, must be "
                f"at most {MOST}"
            )
        if sum(rope.dynamic for rope in self.ropes) > 1:
            yield "several of its rotations depend on how long a text may become"
        every = self.with_mtp.layers
        if not self.layers:
            yield "a decoder has at least one layer"
        parts = dict.fromkeys(x for layer in every for x in (layer.mixer, layer.ffn))
        if (table := self.per_layer_embedding) is not None:
            yield from table.misfits()
            if table.rows < self.vocab_size or table.layers != len(self.layers):
                yield (
                    f"vocab_size_per_layer_input {table.rows} must be at least vocab_size {self.vocab_size}"
                )
        if any(
            (x := layer.token_input) and (table is None or x.width != table.width)
            for layer in every
        ):
            yield "layers that add something by token need per-layer embeddings of their width"
        for part in parts:  # those that are alike are looked at once
            yield from part.misfits()
        for streams in dict.fromkeys(layer.streams for layer in self.layers):
            if streams is not None:
                yield from streams.misfits()
            if (streams and streams.count) != (self.streams and self.streams.count):
                yield "its layers stand in different numbers of residual streams"
        for n, layer in enumerate(self.layers):
            if isinstance(layer.mixer.state, SharedState) and self.assists is None:
                yield from self._shared(n, layer.mixer.state)
        if (own := self.assists) is not None and own.clusters and self.vocab_size % own.clusters:
            yield f"num_centroids {own.clusters} must divide vocab_size {self.vocab_size}"
        heads = () if self.mtp is None else self.mtp.heads
        if any(rows_of(head.layer.mixer.state) is None for head in heads):
            yield "the layer for multi-token prediction must keep rows of its own, not a running state or shared ones"

    def _shared(self, n: int, state: SharedState) -> Iterator[str]:
        reader, owner = (
            self.layers[n].mixer,
            self.layers[state.layer].mixer if 0 <= state.layer < n else None,
        )
        if owner is None or rows_of(owner.state) is None:
            yield f"layer {n} shares the keys of layer {state.layer}, which is no earlier one with keys"
        elif kept_heads(owner) != kept_heads(reader):
            yield f"layer {n} shares the keys of layer {state.layer}, whose heads are of other sizes"


def kept_heads(mixer: Mixer) -> tuple[int, int, int] | None:
    """The number of heads of keys and values, and the dims of both; None where they are no such heads."""
    if not isinstance(mixer, GroupedAttention):
        return None
    return mixer.kv_heads, mixer.head_dim, mixer.value_width


def header_config(path: Path) -> dict[str, Any]:
    """The fields of config.json that a file's header stands for. ValueError in one sentence."""
    file = read_gguf(path)
    family, names = gguf_family(file)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    known = {**GGUF_FIELDS, **names.fields}
    header = names.header(file)
    raw: dict[str, Any] = {"architectures": list(family.architectures[:1])}
    for name, value in header.items():
        if name in known:
            _put(raw, known[name], _plain(value))
        elif name in (*HARMLESS, *names.unread) or NEUTRAL.get(name) == value:
            continue
        elif name in NEUTRAL or not (np.isscalar(value) and value in (0, "", "none")):
            raise ValueError(
                f"{names.architecture}.{name} {shown(value)} changes the model in a way that is not known"
            )
    for name, value in names.given.items():
        outer, point, _ = name.partition(".")
        # nothing is given that a header says, or of an object that is not there
        if name not in raw and (not point or outer in raw):
            _put(raw, name, value)
    if DRAFTS in names.fields:
        raw["num_hidden_layers"] = own_layers(names, header)
        if not any(name.startswith("blk.0.") for name in tensors):
            raise ValueError(
                "it has a layer for multi-token prediction alone: open the model's own file beside it"
            )
    _add_tensors(raw, tensors)
    parts = {name.split(".", 2)[-1] for name in tensors}
    raw |= {name: True for part, name in names.present.items() if part in parts}
    for part, name in names.lists.items():
        raw[name] = [n for n in range(raw["num_hidden_layers"]) if f"blk.{n}.{part}" in tensors]
    # a header says all: what config.json's reader would assume where nothing is said does not hold
    raw.setdefault("rope_scaling", {"rope_type": "default"})
    _check_heads(raw, header, names)
    names.finish(raw)
    if "tokenizer.ggml.model" in file.fields:
        said = GgufVocabulary.read(path).settings()
        raw |= {"bos_token_id": said.bos_id, "eos_token_id": sorted(said.eos_ids)}
    return raw


def own_layers(names: GgufNames, header: Fields) -> int:
    """Layers of the model itself: blocks after them are of layers for multi-token prediction."""
    every, drafts = header.get(BLOCKS), header.get(DRAFTS, 0)
    for name, value in ((BLOCKS, every), (DRAFTS, drafts)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{names.architecture}.{name} {shown(value)} must be a whole number")
    if not 0 <= drafts < every:
        raise ValueError(
            f"{names.architecture}.{DRAFTS} {drafts} must be less than block_count {every}"
        )
    return int(every - drafts)


def _add_tensors(raw: dict[str, Any], tensors: Mapping[str, GgufTensor]) -> None:
    if (embedding := tensors.get("token_embd.weight")) is None:
        raise ValueError("the file lacks tensor token_embd.weight")
    raw["vocab_size"] = embedding.shape[0]
    raw["tie_word_embeddings"] = "output.weight" not in tensors
    first = (tensors.get(f"blk.0.{name}.weight") for name in ("attn_q", "attn_qkv"))
    kind = next(filter(None, first), embedding).kind.name
    raw["torch_dtype"] = OWN_DTYPES.get(kind, "bfloat16")
    keys = [name for name in tensors if name.endswith(".attn_k.weight") and ".indexer." not in name]
    if any(f"{name.removesuffix('k.weight')}v.weight" not in tensors for name in keys):
        raw["attention_k_eq_v"] = True
    if "blk.0.attn_output.bias" in tensors:
        raw["attention_bias"] = True
    if "blk.0.ffn_down.bias" in tensors:
        raw["mlp_bias"] = True
    for name in (ROPE_FACTORS, *LISTS):
        if (factors := tensors.get(name)) is None:
            continue
        if factors.kind.name != "F32":
            raise ValueError(f"tensor {name} is of type {factors.kind.name}, not F32")
        kind = raw.get("rope_scaling", {}).get("rope_type", "none")
        if kind != "none" and not (kind == "longrope" and name in LISTS):
            raise ValueError(f"tensor {name} beside rope.scaling.type is not supported")
        values = [_plain(x) for x in factors.data.reshape(-1).view(np.float32).tolist()]
        said = raw.setdefault("rope_scaling", {})
        said |= {"rope_type": "factors", "factors": values}
        if name in LISTS:
            said |= {"rope_type": "longrope", LISTS[name]: said.pop("factors")}


def _check_heads(raw: Mapping[str, Any], header: Fields, names: GgufNames) -> None:
    dim = raw.get("head_dim")
    hidden, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    if dim is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        dim = hidden // heads
    for name in ("rope.dimension_count", "attention.value_length"):
        value = header.get(name, dim)
        if dim is not None and value != dim and name not in names.fields:
            raise ValueError(
                f"{names.architecture}.{name} {shown(value)} must be the {dim} numbers of a head"
            )


def _put(raw: dict[str, Any], name: str, value: Any) -> None:
    """Set a field; "a.b" is field b of object a."""
    outer, point, inner = name.partition(".")
    if point:
        raw.setdefault(outer, {})[inner] = value
    else:
        raw[name] = value


def _plain(value: Any) -> Any:
    """A header's value as JSON would have it: the shortest number that float32 reads as this one."""
    if isinstance(value, float) and np.isfinite(value):
        return float(str(np.float32(value)))
    return value.tolist() if isinstance(value, np.ndarray) else value
