"""A decoder whose whole step is one call of the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastslow.engine.backends.alike import KERNELS, AlikeLayers
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.compiled import structures
from fastslow.engine.backends.cpu.formats import (
    Format,
    Formats,
    MatrixRuns,
    PackedMatrix,
    float_format,
)
from fastslow.engine.backends.cpu.kv import Int8Tiles, TiledStorage, window_args
from fastslow.engine.backends.cpu.library import (
    BOOL,
    FLOAT32,
    INT64,
    UINT8,
    address,
    addresses,
    tensor_address,
)
from fastslow.engine.backends.cpu.packed import Arena
from fastslow.engine.backends.cpu.pieces import matrices, orders
from fastslow.engine.backends.cpu.running import running_args
from fastslow.engine.backends.cpu.step import KernelStep, Tails
from fastslow.engine.backends.cpu.store import PackedFile
from fastslow.engine.checkpoint.row_file import OpenFile
from fastslow.engine.model.base import MtpModel, check_layers, check_step
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.streams import Streams
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.mixers.rope import Rotary
from fastslow.engine.model.mixers.short_conv import ShortConv
from fastslow.engine.model.ops import ACTIVATIONS, Activation, ClampedSwiglu
from fastslow.engine.model.parts import Mixer, Table
from fastslow.engine.rows import Rows
from fastslow.engine.types import Floats, Ints, ModelOutput

if TYPE_CHECKING:
    from fastslow.engine.kv.state.layout import StateLayout
    from fastslow.engine.kv.state.storage import KVStorage

MOST_ROWS = 1024  # of one call; longer steps are cut, which changes no bit of a row


class CpuDecoder:
    """The counterpart of `engine.backends.torch.decoder.Decoder`, from packed weights.

    Activations are float32 between matrices, keys and values are kept in `dtype`. A row's bits
    depend neither on other rows nor on the number of threads, which is torch's. One step at a
    time runs in a process: a second thread's waits.

    Args:
        formats: what `memory` is packed in.
        arena: where the pieces lie in `memory`, which this object keeps alive.
        layers: those that run, the others are skipped; None = all.
        storage: of keys and values: `TiledStorage`, or `Int8Tiles`.
        table: per-layer embeddings, where there are any: it stays in its file.
        reads: layout of a target's storage, and of its layers those whose rows these read; None: their own.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        config: ModelConfig,
        formats: Formats,
        arena: Arena,
        memory: PackedFile,
        layers: Sequence[int] | None = None,
        storage: type[KVStorage] = TiledStorage,
        table: Table | None = None,
        reads: tuple[StateLayout, tuple[int, ...]] | None = None,
    ) -> None:
        self.config, self.formats, self.storage = config, formats, storage
        self._table, token = table, config.per_layer_embedding
        self._token_inputs = token.layers * token.width if token else 0
        self._arena, self._memory = arena, memory
        self._alike = AlikeLayers.of(config, KERNELS)
        self._rotary = Rotary(*config.ropes)
        self._kernels = library.kernels()
        library.add_attention(KV_FORMATS[torch.int8 if storage is Int8Tiles else formats.kv])
        self.layers = check_layers(layers, range(len(config.layers)))
        self.mtp: MtpModel | None = None
        self._no_logits = torch.empty(0, config.vocab_size)
        self._places: dict[tuple[int, ...], Ints] = {}  # of layers among those that run
        self._inputs = config.hidden_size if config.assists is None else config.assists.hidden
        self._layout, self._owners = reads or (config.state_layout, self.layers)
        running = (structures.CLayer * len(self.layers))(*map(self._layer, self.layers))
        made = ctypes.c_void_p()
        failed = self._kernels.fs_model_new(
            ctypes.byref(self._shape()), running, ctypes.byref(made)
        )
        library.check(failed, "making the model")
        self._handle = made.value

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._handle = None
            self._kernels.fs_model_delete(handle)

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.formats.kv

    def bytes_for(self, groups: int | None = None) -> int:
        """Bytes of weights that a greedy token's step reads, with this number of routed groups."""
        routed = self.config.routed
        running = 0 if routed is None else routed.router.running(groups)
        pieces = {k: piece.nbytes for k, piece in self._arena.pieces.items() if self._runs(k)}
        left_out = ("embedding", *(("head",) if self.formats.screens else ()))
        every = sum(
            size
            for key, size in pieces.items()
            if key not in left_out and ".expert" not in key and (running or ".router" not in key)
        )
        return every + running * sum(pieces[key] for key in pieces if ".expert0." in key)

    def _runs(self, key: str) -> bool:
        layer = key.partition(".")[0]
        return int(layer) in self.layers if layer.isdigit() else layer != "mtp"

    def layer_subset(self, layers: Sequence[int]) -> CpuDecoder:
        """See `Model.layer_subset`; the weights are shared."""
        some = check_layers(layers, self.layers)
        memory = self._arena, self._memory
        return CpuDecoder(self.config, self.formats, *memory, some, self.storage, self._table)

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        """See `Model.forward`; logits and features are float32."""
        check_step(rows, kv, self.storage, features, self.layers)
        for name, some in (("outputs", rows.outputs), ("rows to see", rows.feature_rows)):
            if len(some) > len(rows.tokens):
                raise ValueError(f"{len(some)} {name} are more than the {len(rows.tokens)} rows")
        count, hidden = len(rows.outputs), self.config.hidden_size
        # no logits are written where every row wants only its best token
        none = False not in rows.only_best.tolist()
        logits = self._no_logits if none else torch.empty(count, self.config.vocab_size)
        # torch's code is out of the caches after every step: a call takes twenty times as long as usual
        seen = NOTHING
        if features:
            seen = np.empty((len(rows.feature_rows), len(features) * hidden), dtype=np.float32)
        best = np.empty(count, dtype=np.int64)
        cos, sin = self._rotary.at(rows)
        step = KernelStep(rows, Tails.of(rows), cos, sin, None if none else logits, seen, best)
        if len(rows.tokens) <= MOST_ROWS:
            self._call(kv, features, step)
        else:
            for part in step.parts(MOST_ROWS):
                self._call(kv, features, part)
        return ModelOutput(logits, seen if features else None, best)

    def _call(self, kv: KVStorage, features: tuple[int, ...], step: KernelStep) -> None:
        rows, tails, c = step.rows, step.tails, self.config
        if kv.layout is not self._layout:  # which a look tells of the usual one
            if kv.layout != self._layout:
                raise ValueError(f"kv of {kv.layout} is not that of this model")
            self._layout = kv.layout
        T, M, angles = len(rows.tokens), len(rows.outputs), self._rotary.width
        B, seen = len(rows.contexts), rows.feature_rows if features else rows.feature_rows[:0]
        contexts = [*map(np.ascontiguousarray, rows.contexts)]
        sizes = [*map(len, contexts)]
        each = [address("contexts", slots, INT64, n) for slots, n in zip(contexts, sizes)]
        texts = np.array([*each, *sizes], dtype=np.int64)
        at = address("contexts and their lengths", texts, INT64, 2 * B)
        if (wanted := self._places.get(features)) is None:  # the kernels count the layers that run
            wanted = np.array([self.layers.index(n) for n in features], dtype=np.int64)
            self._places[features] = wanted
        keys, values = kv.addresses(self._owners)
        growth, scale = self._alike.attention.position_scale, None
        if growth is not None:
            scale = (1 + growth[0] * np.log1p(rows.positions // growth[1])).astype(np.float32)
        by_token, token_rows = 0, None
        if self._table is not None:
            token_rows = self._table[torch.from_numpy(rows.tokens)].float().contiguous()
            by_token = tensor_address("per-layer embeddings", token_rows, T * self._token_inputs)
        logits, width, inputs = step.logits, len(features) * c.hidden_size, rows.inputs
        running: dict[str, int] = {}
        if kv.running is not None and rows.running is not None:
            running, _alive = running_args(kv.running, self.layers, rows.running, rows.parents)
        whole = addresses(
            INT64,
            {
                "tokens": (rows.tokens, T),
                "slots": (rows.slots, T),
                "groups": (rows.groups, T),
                "starts": (rows.starts, B + 1),
                "tails": (tails.slots, len(tails.slots)),
                "tail_starts": (tails.starts, T),
                "tail_lengths": (tails.lengths, T),
                "wanted": (rows.outputs, M),
                "best": (step.best, M),
                "seen": (seen, len(seen)),
                "feature_layers": (wanted, len(features)),
            },
        )
        floats = {"cos": (step.cos, T * angles), "sin": (step.sin, T * angles)}
        floats["feature_values"] = step.features, len(seen) * width
        args = structures.StepArgs(
            threads=torch.get_num_threads(),
            rows=T,
            requests=B,
            outputs=M,
            seen_rows=len(seen),
            features=len(features),
            kv_format=KV_FORMATS[kv.memory_dtype],
            slot_count=kv.slots,
            tail_count=len(tails.slots),
            query_scale=0 if scale is None else address("query_scale", scale, FLOAT32, T),
            contexts=at,
            context_lengths=at + 8 * B,
            chains=address("chains", tails.chains, UINT8, B),
            keys=keys,
            values=values,
            only_best=address("only_best", rows.only_best, BOOL, M),
            logits=0 if logits is None else tensor_address("logits", logits, M * c.vocab_size),
            hidden=0 if inputs is None else tensor_address("inputs", inputs, T * self._inputs),
            token_rows=by_token,
            **(whole | addresses(FLOAT32, floats) | running | window_args(kv, self._owners)),
        )
        if failed := self._kernels.fs_step(self._handle, ctypes.byref(args)):
            library.check(failed, f"a step of {T} rows")

    @property
    def weight_bytes(self) -> int:
        """Memory of all weights."""
        return self._arena.nbytes

    def _at(self, key: str) -> int | None:
        piece = self._arena.pieces.get(key)
        if piece is None:
            return None
        return self._memory.address(self._arena.offsets[key], piece.nbytes)

    def _matrix(self, key: str) -> structures.CMatrix:
        piece = self._arena.pieces.get(key)
        if not isinstance(piece, PackedMatrix):
            return structures.CMatrix()
        return structures.CMatrix(
            self._at(key), self._at(f"{key}_bias"), piece.format, piece.inputs, piece.outputs
        )

    def _heads(self, a: GroupedAttention, key: str) -> dict[str, structures.CMatrix]:
        """Queries, keys and values, from one matrix or one after the other from three."""
        piece = self._arena.pieces[key]
        if not isinstance(piece, MatrixRuns):
            rows = len(orders.plain_order(a.head_dim))
            return matrices.head_matrices(self._matrix(key), matrices.head_counts(a), rows)
        found, tiles, bias = {}, self._at(key), self._at(f"{key}_bias")
        assert tiles is not None
        for name, run in zip(matrices.SIDES, piece.runs):
            found[name] = structures.CMatrix(tiles, bias, run.format, run.inputs, run.outputs)
            tiles += run.nbytes
            bias = None if bias is None else bias + 4 * run.outputs
        return found

    def _layer(self, n: int) -> structures.CLayer:
        layer = self.config.layers[n]
        mixer, own = layer.mixer, dict[str, Any]()
        if isinstance(mixer, GroupedAttention):
            own |= self._heads(mixer, f"{n}.qkv") | {"gates": self._matrix(f"{n}.gates")}
            names = "window", "heads", "kv_heads", "head_dim", "score_scale"
            own |= {name: getattr(mixer, name) for name in names}
            own |= {"value_dim": mixer.value_width, "values_normed": mixer.value_norm is not None}
            own["head_norms"] = 2 if mixer.norms_whole else int(mixer.norm_turned)
        elif isinstance(mixer, LatentAttention):
            names = "window", "heads", "kv_heads", "head_dim", "value_dim"
            own |= {name: getattr(mixer.absorbed, name) for name in names}
            own |= {name: self._matrix(f"{n}.{name}") for name in ("queries", "absorb", "expand")}
            own |= {"score_scale": mixer.score_scale, "latent_eps": mixer.norm.eps}
            if (x := mixer.indexer) is not None:
                own |= {"index_most": x.most, "index_heads": x.heads, "index_dim": x.dim}
                own["index_eps"] = x.norm.eps
        if (token := layer.token_input) is not None:
            every, rows = self._matrix("token_projection"), len(orders.plain_order(token.width))
            own["token_projection"] = matrices.part_of(every, n * rows, rows)
            own["token_at"] = n * token.width
        first, second = self._at(f"{n}.expert0.gate_up"), self._at(f"{n}.expert1.gate_up")
        return structures.CLayer(
            rope_at=self._rotary.starts[layer.rope],
            mixer=MIXERS[type(mixer)],
            residual_scale=layer.residual_scale,
            **{k: self._at(f"{n}.{k}") for k in VECTORS},
            expert_gate_up=self._matrix(f"{n}.expert0.gate_up"),
            expert_down=self._matrix(f"{n}.expert0.down"),
            expert_bytes=second - first if layer.routed and first and second else 0,
            **own,
            **{k: self._matrix(f"{n}.{k}") for k in MATRICES},
        )

    def _shape(self) -> structures.CShape:
        c, cold, alike = self.config, self._memory.cold, self._alike
        a, act, routed, router = alike.attention, alike.activation, alike.routed, alike.router
        swiglu = act if isinstance(act, ClampedSwiglu) else ClampedSwiglu()
        own = "embedding" in self._arena.offsets  # else the head's tiles have it
        tiles, streams = self.formats.tiles, c.streams or Streams()
        form = float_format(self.formats.embedding) if tiles is None else tiles
        return structures.CShape(
            layers=len(self.layers),
            hidden=c.hidden_size,
            angles=self._rotary.width,
            neurons=alike.widest,
            vocabulary=c.vocab_size,
            experts=routed.experts if routed else 0,
            chosen=c.chosen,
            expert_neurons=routed.expert.width if routed else 0,
            router=ROUTERS[None if router is None else router.kind],
            router_normed=router is not None and router.normed,
            router_groups=0 if router is None else router.groups,
            kept_groups=0 if router is None else router.kept_groups,
            group_best=0 if router is None else router.group_best,
            router_factor=1.0 if router is None else router.scale,
            router_eps=0.0 if router is None else router.weights_eps,
            activation=_activation(act),
            swiglu_alpha=swiglu.alpha,
            swiglu_limit=swiglu.limit,
            embedding_scale=c.embedding_scale,
            score_cap=a.score_cap,
            logit_cap=c.logit_cap,
            sinks=a.sinks,
            eps=alike.eps,
            shared_gate=routed is not None and routed.shared_gate,
            token_width=self._token_inputs // len(c.layers),
            token_inputs=self._token_inputs,
            token_projection_norm=self._at("token_projection_norm"),
            recurrence=_recurrence(alike.recurrent or c.layers[-1].mixer),
            embedding_format=form,
            embedding=self._at("embedding") if own else self._at("head"),
            embedding_at=self._arena.offsets["embedding"] if own else 0,
            embedding_file=cold.number if isinstance(cold, OpenFile) else -1,
            embedding_rows=c.vocab_size,
            embedding_tiles=tiles is not None,
            norm=self._at("norm"),
            head=self._matrix("head"),
            screen=self._matrix("screen"),
            screen_norms=self._at("screen_norms"),
            merge_mix=self._at("merge_mix"),
            stream_rounds=streams.rounds,
            streams_eps=streams.norm.eps,
            merge_eps=streams.merge_norm.eps,
        )


def _recurrence(mixer: Mixer) -> structures.CRecurrence:
    if isinstance(mixer, LatentAttention):
        return structures.CRecurrence(sum(mixer.convolved.values()), mixer.conv)
    if isinstance(mixer, ShortConv):
        return structures.CRecurrence(mixer.channels, mixer.kernel)
    if not isinstance(mixer, GatedDelta):
        return structures.CRecurrence()
    heads = (mixer.key_heads, mixer.value_heads, mixer.key_dim, mixer.value_dim)
    return structures.CRecurrence(mixer.channels, mixer.kernel, *heads, mixer.tiled, mixer.eps)


def _activation(activation: Activation) -> int:
    """Its number in kernels/model.h."""
    return 2 if isinstance(activation, ClampedSwiglu) else ACTIVATIONS.index(activation)


KV_FORMATS = {
    torch.float32: Format.FLOAT32,
    torch.bfloat16: Format.BFLOAT16,
    torch.int8: Format.INT8,
}
VECTORS = (
    *("attention_norm", "attention_post_norm", "query_norm", "key_norm", "sink_logits"),
    *("sink_keys", "sink_values", "mlp_norm", "mlp_post_norm", "router_scale", "choice_bias"),
    *("conv", "decay", "dt_bias", "value_norm", "router_norm", "expert_norm", "dense_post_norm"),
    *("expert_post_norm", "layer_scale", "token_norm", "attention_mix", "mlp_mix", "streams_norm"),
    *("index_norm", "index_bias"),
)
MATRICES = (
    *("out", "router", "gate_up", "down", "mixed", "z", "rates", "token_gate", "token_up"),
    *("index_queries", "index_keys"),
)
MIXERS = {
    GroupedAttention: 0,
    GatedDelta: 1,
    ShortConv: 2,
    LatentAttention: 3,
}  # see kernels/model.h
ROUTERS = {None: 0, "softmax": 1, "chosen": 2, "sigmoid": 3}  # by Router.kind, see kernels/model.h
NOTHING: Floats = np.empty((0, 0), dtype=np.float32)
