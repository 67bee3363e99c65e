"""Shape of a decoder: its layers, each a value, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Self

from fastslow.engine.kv.state.layout import RowsAndRunning, State, StateLayout, rows_of
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.parallel import ParallelFfn
from fastslow.engine.model.ffn.streams import Streams
from fastslow.engine.model.ffn.token_input import PerLayerEmbedding, TokenInput
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.mixers.rope import Rope
from fastslow.engine.model.norms import USUAL_NORM, USUAL_NORMS, LayerNorms, Norm
from fastslow.engine.model.parts import FeedForward, Mixer


@dataclass(frozen=True, slots=True)
class Layer:
    """A decoder layer: what lets rows see each other, what is made of each row, and the norms around both.

    residual_scale: what each of the two adds to the residual stream is multiplied with it. token_input: what it
    adds then by the row's token; `DecoderShape.per_layer_embedding` is there. scaled: last, all of its output is
    multiplied by a learned number, `layer_scalar` [1]. streams: how its sublayers stand in several residual streams,
    whose number is the same in all layers; None: there is one."""

    mixer: Mixer
    ffn: FeedForward
    norms: LayerNorms = USUAL_NORMS
    residual_scale: float = 1.0
    token_input: TokenInput | None = None
    scaled: bool = False
    streams: Streams | None = None

    @property
    def rope(self) -> Rope | None:
        """The rotation of its mixer; None where it has none."""
        mixer = self.mixer
        return mixer.rope if isinstance(mixer, GroupedAttention | LatentAttention) else None

    @property
    def routed(self) -> RoutedExperts | None:
        """Its routed experts, if it has any."""
        ffn = self.ffn.routed if isinstance(self.ffn, ParallelFfn) else self.ffn
        return ffn if isinstance(ffn, RoutedExperts) else None


@dataclass(frozen=True, slots=True)
class MtpLayer:
    """A further layer that predicts the token after the next one (DeepSeek-V3, arXiv 2412.19437, section 2.2).

    The embedding of a token and the model's hidden state before it, each normed, are brought to one vector by the
    matrix `entry` [H, 2H]; a whole decoder layer and the model's head turn that into logits. The next draft reads
    the layer's output after `norm`. Checkpoints differ in names and order alone.

    prefix: of the layer's own tensors. embedding_norm, hidden_norm, entry, norm: names of the others. norms: their
    kind. after_norm: the hidden state is the model's after its last norm. embedding_first: in what `entry` reads.
    later: further such layers; the first of them drafts the second token, and so on. The row of a token reads the output
    that the layer before has for the token before it. The last one drafts all tokens after its own."""

    layer: Layer
    prefix: str
    embedding_norm: str
    hidden_norm: str
    entry: str
    norm: str
    norms: Norm = USUAL_NORM
    after_norm: bool = True
    embedding_first: bool = True
    later: tuple[Self, ...] = ()

    @property
    def heads(self) -> tuple[Self, ...]:
        """All of them, in the order in which they draft."""
        return (self, *self.later)

    @classmethod
    def numbered(
        cls, layer: Layer, n: int, kind: Norm, after_norm: bool = True, count: int = 1
    ) -> Self:
        """`count` of them, with the names of layers from `n` on, which come after the model's own."""
        p = f"model.layers.{n}"
        names = f"{p}.enorm", f"{p}.hnorm", f"{p}.eh_proj", f"{p}.shared_head.norm"
        later = tuple(cls.numbered(layer, n + k, kind, after_norm) for k in range(1, count))
        return cls(layer, p, *names, kind, after_norm, later=later)

    @classmethod
    def apart(cls, layer: Layer, kind: Norm) -> Self:
        """With names of its own, which begin with `mtp`."""
        names = "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.fc", "mtp.norm"
        return cls(layer, "mtp.layers.0", *names, kind)


@dataclass(frozen=True, slots=True)
class Assistance:
    """Fields of a decoder that drafts for another, its target, whose keys and values all its layers read.

    `pre_projection` of the target's embedding of a token, beside the target's hidden state before it, is what the first
    layer takes; `post_projection` of the output stands for the hidden state of the next token.

    target: how the target's architecture begins. hidden: of the target. clusters: of the vocabulary, all of one size;
    0: there are none. chosen: of these, those whose centroids fit best; other tokens have no logits."""

    target: str
    hidden: int
    clusters: int = 0
    chosen: int = 0


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The layers of a decoder, and what all of them share. Sizes are in elements, positions in tokens.

    Attributes:
        norm: after the last layer.
        dtype: the checkpoint's, as config.json spells it.
        embedding_scale: embeddings are multiplied with it where they enter the first layer.
        logit_scale: logits are multiplied with it, before a cap.
        logit_cap: logits x become cap * tanh(x / cap); 0: as they are.
        per_layer_embedding: what every layer's `token_input` reads; None: no layer has one.
        mtp: the layer that predicts further tokens; None: the checkpoint is not asked for one.
        assists: what it has as the assistant of another model, without which it does not run; None: it is none.
        drafts_inside: tensors of layers after the model's own belong to drafts.
        fused: layouts in which files may hold several tensors as one: "experts" of a layer, gates above ups; "experts
            in turn", gates and ups in turn; "delta", matrices of a gated delta net; "choice row", a matrix of one row
            for the bias of a router's choice; "latent", keys and values of a latent apart (`checkpoint/fused.py`).
        left_out: beginnings of names of tensors that files may hold beside the text's, such as those for images.
        renames: parts of tensors' names in files, and what stands for them here.
        ropes: the rotations of its layers, each once; drafters ask for them in every step.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    max_positions: int
    norm: Norm = USUAL_NORM
    tie_word_embeddings: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    dtype: str | None = None
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    per_layer_embedding: PerLayerEmbedding | None = None
    mtp: MtpLayer | None = None
    assists: Assistance | None = None
    drafts_inside: bool = False
    fused: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    ropes: tuple[Rope, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found = dict.fromkeys(layer.rope for layer in self.layers)
        object.__setattr__(self, "ropes", tuple(rope for rope in found if rope is not None))

    def each(self, change: Callable[[int, Layer], Layer]) -> Self:
        """The same with every layer changed by its number."""
        return replace(self, layers=tuple(map(change, range(len(self.layers)), self.layers)))

    def mixing(self, mixers: Iterable[Mixer]) -> Self:
        """The same with a mixer for each layer."""
        each = zip(self.layers, mixers, strict=True)
        return replace(self, layers=tuple(replace(layer, mixer=mixer) for layer, mixer in each))

    def each_head(self, change: Callable[[int, Layer], Layer]) -> Self:
        """The same with every MTP layer changed by its number, which goes on after the model's own."""
        if self.mtp is None:
            return self
        each = enumerate(self.mtp.heads, len(self.layers))
        first, *later = (replace(head, layer=change(n, head.layer)) for n, head in each)
        return replace(self, mtp=replace(first, later=tuple(later)))

    def drafting(self, most: int) -> Self:
        """The same with so many of its MTP layers at most."""
        kept = () if self.mtp is None else self.mtp.heads[:most]
        return replace(self, mtp=replace(kept[0], later=kept[1:]) if kept else None)

    @property
    def with_mtp(self) -> Self:
        """The same with its MTP layers, if it has any, as the last of its layers."""
        if self.mtp is None:
            return self
        own = (head.layer for head in self.mtp.heads)
        return replace(self, layers=(*self.layers, *own), mtp=None)

    @property
    def streams(self) -> Streams | None:
        """How its layers stand in several residual streams, which become one at the end; None: there is one."""
        return self.layers[0].streams if self.layers else None

    @property
    def state_layout(self) -> StateLayout:
        """The states that its layers keep of a text; those of MTP layers come last, and are kept whole: their rows are
        written late."""
        states: list[State] = [layer.mixer.state for layer in self.with_mtp.layers]
        for n in range(len(self.layers), len(states)):
            own = states[n]
            if (rows := rows_of(own)) is not None:
                whole = replace(rows, window=0)
                states[n] = replace(own, rows=whole) if isinstance(own, RowsAndRunning) else whole
        return StateLayout(tuple(states))

    def rope_length(self, max_len: int) -> int:
        """Return what decides the rotary base of a request that may become this long: equal numbers, equal keys."""
        return max((rope.length(max_len) for rope in self.ropes), default=0)

    def check_alone(self) -> None:
        """ValueError for a model that drafts for another one, and runs beside it only."""
        if self.assists is not None:
            what = f"it drafts for a {self.assists.target} model, and does not run alone"
            raise ValueError(f"{what}: give it as head")

    @property
    def context(self) -> int:
        """The longest text in tokens."""
        return min((rope.context for rope in self.ropes), default=self.max_positions)

    @property
    def routed(self) -> RoutedExperts | None:
        """The routed experts of the first layer that has any; None for a dense model."""
        return next((x for layer in self.layers if (x := layer.routed) is not None), None)

    @property
    def chosen(self) -> int:
        """Routed experts that a token runs in a layer that has any; 0 for a dense model."""
        return 0 if self.routed is None else self.routed.router.chosen
