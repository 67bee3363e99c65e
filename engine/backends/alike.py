"""Models whose layers are alike: grouped attention of one shape, one kind of norm, MLPs of one width; and between
them, where a backend knows that kind, recurrent layers of one shape.

Compiled kernels, accelerators and several ranks run these; any other model runs on plain torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.parallel import ParallelFfn
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.mixers.rope import Rope
from fastslow.engine.model.mixers.short_conv import ShortConv
from fastslow.engine.model.norms import LayerNorms, Norm, RmsNorm
from fastslow.engine.model.ops import Activation
from fastslow.engine.model.parts import Mixer
from fastslow.engine.model.shape import DecoderShape, Layer

Recurrent = GatedDelta | ShortConv


@dataclass(frozen=True, slots=True)
class Known:
    """Parts that a backend runs beside those that all run. recurrent: kinds of mixers. parts: of PARTS."""

    recurrent: tuple[type[Recurrent], ...] = ()
    parts: frozenset[str] = frozenset()


PARTS = {  # fields of shapes, layers and their parts that not every backend knows, and what they stand for
    "out_gate": "gates of what a head of attention saw",
    "norms_whole": "norms of all heads together",
    "norm_turned": "norms of heads after rotation",
    "score_scale": "factor of scores of its own",
    "position_scale": "factor of queries by position",
    "residual_scale": "factor of what sublayers add",
    "logit_scale": "factor of logits",
    "shared_gate": "gate of the shared expert",
    "ropes": "layers that rotate in several ways",
    "before": "layers without norms before sublayers",
    "latent": "attention over latents",
    "indexer": "indexer of sparse attention",
    "value_norm": "norms of values",
    "keys_as_values": "values made of keys",
    "per_layer_embedding": "per-layer embeddings",
    "scaled": "factor of a layer's output",
    "input_norm": "router with a norm of its own",
    "per_expert_scale": "learned factor of an expert",
    "shares": "layers that share the keys of another",
    "attention": "layers of attention that differ in more than windows and rotation",
    "mlps": "MLPs of several widths",
    "parallel": "MLP beside routed experts",
    "conv": "convolutions beside latents",
    "latent_sinks": "learned latents that every row sees",
    "streams": "several residual streams",
}
LATENT = frozenset(("latent", "latent_sinks", "conv", "streams", "indexer"))
NO_MORE = Known()
ACCELERATORS = Known((GatedDelta, ShortConv), LATENT | {"out_gate", "shared_gate"})
RANKS = Known(parts=LATENT)
KERNELS = Known((GatedDelta, ShortConv), frozenset(PARTS))


@dataclass(frozen=True, slots=True)
class AlikeLayers:
    """The common parts of a model's layers. attention: of each that has it, but for its window and where it is not
    rotated; of the first, where they differ in more. recurrent: the mixer of the others; None = there are none. dense,
    routed: of those layers that have such a one, the widest MLP; None = none has. latent: the first layer's that attends
    over latents, where all do that attend."""

    attention: GroupedAttention
    norms: LayerNorms
    dense: DenseMlp | None
    routed: RoutedExperts | None
    recurrent: Recurrent | None = None
    latent: LatentAttention | None = None

    @classmethod
    def of(cls, config: DecoderShape, known: Known = NO_MORE) -> AlikeLayers:
        """ValueError in one sentence where the layers differ in more."""
        if (why := unlike(config, known)) is not None:
            raise ValueError(f"{config.architecture} runs on plain torch alone: {why}")
        every = [layer.mixer for layer in config.layers]
        kept = (x.absorbed if isinstance(x, LatentAttention) else x for x in every)
        mixers = [mixer for mixer in kept if isinstance(mixer, GroupedAttention)]
        ropes = config.ropes
        attention = replace(mixers[0], rope=ropes[0] if ropes else None, window=0)
        mlps = [mlp for layer in config.layers if (mlp := dense(layer)) is not None]
        return cls(
            attention,
            config.layers[0].norms,
            max(mlps, key=lambda mlp: mlp.width, default=None),
            config.routed,
            next((x for x in every if isinstance(x, known.recurrent)), None),
            next((x for x in every if isinstance(x, LatentAttention)), None),
        )

    @property
    def rope(self) -> Rope:
        """The rotation of heads; one by nothing where no layer has any."""
        a = self.attention
        return a.rope or Rope(a.head_dim, 10000.0, 1)

    @property
    def eps(self) -> float:
        """Of all norms."""
        return self.norms.kind.eps

    @property
    def activation(self) -> Activation:
        """Of all MLPs."""
        ffn = self.dense or (self.routed and self.routed.expert)
        return ffn.activation if ffn else "silu"

    @property
    def widest(self) -> int:
        """Numbers inside the widest MLP that every row runs; 1 where there is none."""
        every = (size for name, size in self.mlps.items() if name != "moe_intermediate_size")
        return max(every, default=1)

    @property
    def mlps(self) -> dict[str, int]:
        """Width of each kind of MLP that there is, by its field in config.json."""
        routed = self.routed
        found = {
            "intermediate_size": self.dense,
            "moe_intermediate_size": routed.expert if routed else None,
            "shared_expert_intermediate_size": routed.shared if routed else None,
        }
        return {name: mlp.width for name, mlp in found.items() if mlp is not None}

    @property
    def router(self) -> Router | None:
        """The router of experts without groups of which each runs one; None: there is none."""
        found = self.routed and self.routed.router
        return found if isinstance(found, Router) else None


def unlike(config: DecoderShape, known: Known = NO_MORE) -> str | None:
    """Say in which part, that a backend does not know, a model's layers are another kind; None: in none."""
    return next(_unlike(config, known), None)


def grouped(layer: Layer) -> GroupedAttention:
    """The attention of a layer of a model whose layers are alike."""
    assert isinstance(layer.mixer, GroupedAttention)
    return layer.mixer


def dense(layer: Layer) -> DenseMlp | None:
    """The MLP of a layer that every row runs, but for shared experts; None: it has none."""
    ffn = layer.ffn.dense if isinstance(layer.ffn, ParallelFfn) else layer.ffn
    return ffn if isinstance(ffn, DenseMlp) else None


def _unlike(config: DecoderShape, known: Known) -> Iterator[str]:
    norms = {config.norm, *_norms(config)}
    recurrent = {x.mixer for x in config.layers if isinstance(x.mixer, known.recurrent)}
    attending = [layer for layer in config.layers if layer.mixer not in recurrent]
    if not attending:
        yield "they need a layer of attention"
        return
    if len(recurrent) > 1:
        yield "its recurrent layers differ"
    if any(isinstance(mixer, ShortConv) and mixer.bias for mixer in recurrent):
        yield "their short convolutions have no biases"
    first = attending[0]
    over = [layer.mixer for layer in attending if isinstance(layer.mixer, LatentAttention)]
    kinds = {(mixer.conv, mixer.sinks) for mixer in over}
    if len(kinds) > 1 or (recurrent and kinds - {(0, 0)}):
        yield "its layers differ in convolutions beside latents or learned latents"
    if any(layer.streams and not layer.norms.after for layer in config.layers):
        yield "residual streams take what norms come after"
    if any(layer.norms != first.norms for layer in config.layers):
        yield "its layers have norms in several places"
    for layer in attending:
        mixer = layer.mixer
        latents = isinstance(first.mixer, LatentAttention) and "latent" in known.parts
        if isinstance(mixer, LatentAttention) and latents:
            norms.add(replace(mixer.norm, eps=config.norm.eps))
            continue
        if not isinstance(mixer, GroupedAttention):
            yield f"they have no {type(mixer).__name__}"
            return
        if _common(mixer) != _common(first.mixer):
            yield "its layers of attention differ in caps, learned keys or factors by position"
    if not isinstance(first.norms.kind, RmsNorm) or len(norms) > 1 or not first.norms.names:
        yield "they have one RMSNorm for all places, before or after each sublayer"
    if (
        config.mtp is not None and config.logit_scale != 1
    ):  # it is part of the last norm, which drafts read
        yield "they have no factor of logits beside a layer for multi-token prediction"
    yield from (f"they have no {PARTS[name]}" for name in sorted(_parts(config) - known.parts))
    for layer in config.layers:
        if not isinstance(layer.ffn, DenseMlp | RoutedExperts | ParallelFfn):
            yield f"they have no {type(layer.ffn).__name__}"
            return
        if isinstance(layer.ffn, ParallelFfn) and layer.ffn.routed.shared is not None:
            yield "they have no shared expert beside an MLP"
    ffns = {layer.routed for layer in config.layers} - {None}
    mlps = {(x.activation, x.bias) for layer in config.layers if (x := dense(layer)) is not None}
    for kind, shapes in ((DenseMlp, mlps), (RoutedExperts, ffns)):
        if len(shapes) > 1:
            yield f"its layers have {kind.__name__} of several shapes"
    for ffn in ffns:
        if ffn is not None:
            if ffn.shared is not None and (
                ffn.shared.bias or ffn.shared.activation != ffn.expert.activation
            ):
                yield "their shared expert is as the routed ones, without biases"
            if mlps and any(activation != ffn.expert.activation for activation, _ in mlps):
                yield "its MLPs have several activations"


def _parts(config: DecoderShape) -> set[str]:
    """The PARTS that a model has."""
    layers = config.layers
    routed = {ffn for layer in layers if (ffn := layer.routed) is not None}
    places: set[Any] = {config, *layers, *routed, *(ffn.router for ffn in routed)}
    places |= {part for layer in layers for part in (layer.mixer, layer.ffn, layer.norms)}
    each = [(place, one) for place in places for one in fields(place) if one.name in PARTS]
    found = {one.name for place, one in each if getattr(place, one.name) != one.default}
    mixers = [
        x for layer in layers if isinstance(x := layer.mixer, GroupedAttention | LatentAttention)
    ]
    alike = {
        replace(x, window=0, indexer=None)
        if isinstance(x, LatentAttention)
        else replace(x, rope=None, window=0)
        for x in mixers
    }
    several = {
        "ropes": len(config.ropes) > 1,
        "attention": len(alike) > 1,
        "mlps": len({mlp.width for layer in layers if (mlp := dense(layer)) is not None}) > 1,
        "parallel": any(isinstance(layer.ffn, ParallelFfn) for layer in layers),
        "latent_sinks": any(isinstance(x.mixer, LatentAttention) and x.mixer.sinks for x in layers),
    }
    return found - {"ropes"} | {name for name, there in several.items() if there}


def _norms(config: DecoderShape) -> Iterator[Norm]:
    """The kinds of all norms in layers."""
    for layer in config.layers:
        mixer, ffn, routed = layer.mixer, layer.ffn, layer.routed
        found: list[Norm | None] = [layer.norms.kind]
        if isinstance(mixer, GroupedAttention):
            found += mixer.query_norm, mixer.key_norm, mixer.value_norm
        if isinstance(ffn, ParallelFfn):
            found.append(ffn.norm)
        if routed is not None and isinstance(routed.router, Router):
            found.append(routed.router.input_norm)
        if layer.token_input is not None:
            found.append(layer.token_input.norm)
        if layer.streams is not None:
            found.append(layer.streams.whole_norm)
        yield from (kind for kind in found if kind is not None)
    if config.per_layer_embedding is not None:
        yield config.per_layer_embedding.norm


def _common(mixer: Mixer) -> tuple[object, ...] | None:
    """Fields of attention that all layers share, whatever a backend knows."""
    if not isinstance(mixer, GroupedAttention):
        return None
    return mixer.score_cap, mixer.sinks, mixer.position_scale
