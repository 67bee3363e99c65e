"""The weights of a decoder for accelerators: experts of a layer in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from loguru import logger
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.ops import DeviceMatrix, DeviceMlp, Front, PagedOps
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.decoder import Read, run_heads, run_out
from fastslow.engine.model.ops import ReadQuant, no_int8, wide
from fastslow.engine.model.tensors import layer_norms


@dataclass(frozen=True, slots=True)
class Mixture:
    """Routed experts, and the shared one where there is one. router: [E, H]; router_bias is added to its
    logits, choice_bias to what an expert is chosen by, and a MoGE's scale multiplies its weight; each [E],
    all float32."""

    router: Tensor
    experts: DeviceMlp
    shared: DeviceMlp | None = None
    scale: Tensor | None = None
    router_bias: Tensor | None = None
    choice_bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class StackedLayer:
    """q, k and v in one matrix. query_norm, key_norm: of heads. Post norms are of what is added."""

    attention_norm: Tensor
    qkv: DeviceMatrix
    out: DeviceMatrix
    mlp_norm: Tensor
    mlp: DeviceMlp | Mixture
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    front: Front | None = None
    attention_post_norm: Tensor | None = None
    mlp_post_norm: Tensor | None = None


class Stacked:
    """Weights of a config in `dtype` on `device`, read by the names of `tensors.tensor_shapes`.

    read: any tensor by its name, as float. int8: gives matrices that are to run in int8, None for the others.

    ValueError: the device's kernels cannot run the model; no weight is read then.
    """

    def __init__(
        self,
        config: ModelConfig,
        ops: PagedOps,
        dtype: torch.dtype,
        device: torch.device,
        read: Read,
        int8: ReadQuant = no_int8,
    ) -> None:
        ops.check(config, dtype)
        if int8 is not no_int8 and not ops.runs_int8:
            logger.warning("int8 weights do not run on this device, they are multiplied out")
            int8 = no_int8
        self.config, self.ops, self.dtype, self.device = config, ops, dtype, device
        self._read, self._int8 = read, int8
        self.embedding = self._plain("model.embed_tokens.weight")
        self.layers = [self._layer(n) for n in range(config.layers)]
        self.norm = self._norm("model.norm")
        tied = config.tie_word_embeddings
        self.head = DeviceMatrix(ops.pack(self.embedding)) if tied else self._matrix("lm_head")
        del self._read, self._int8

    def _plain(self, *names: str, dtype: torch.dtype | None = None) -> Tensor:
        """The named tensors below each other."""
        parts = [self._read(name) for name in names]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.to(self.device, dtype or self.dtype)

    def _matrix(self, *names: str, bias: bool = False) -> DeviceMatrix:
        weights = [f"{name}.weight" for name in names]
        added = self._plain(*(f"{name}.bias" for name in names)) if bias else None
        if (quantised := self._in_int8(weights)) is not None:
            return DeviceMatrix(quantised.weight, added, quantised.scale)
        return DeviceMatrix(self.ops.pack(self._plain(*weights)), added)

    def _in_int8(self, names: Sequence[str]) -> DeviceMatrix | None:
        """The named matrices side by side, [I, O], if they are all int8."""
        parts = [part for name in names if (part := self._int8(name)) is not None]
        if len(parts) < len(names):
            return None
        weight_IO = torch.cat([part.weight_OI for part in parts]).T.contiguous()
        scale_O = torch.cat([part.scale_O.float() for part in parts])
        return DeviceMatrix(weight_IO.to(self.device), None, scale_O.to(self.device))

    def embed(self, tokens: Tensor) -> Tensor:
        """[T, H] as the first layer takes it."""
        rows, scale = self.embedding.index_select(0, tokens), self.config.embedding_scale
        return rows if scale == 1 else rows * scale

    def _norm(self, name: str) -> Tensor:
        """The weight of a norm in the dtype that kernels want, rounded after its offset is added."""
        if not (offset := self.config.norm_offset):
            return self._plain(f"{name}.weight")
        return (self._plain(f"{name}.weight", dtype=wide(self.dtype)) + offset).to(self.dtype)

    def _layer(self, n: int) -> StackedLayer:
        prefix, c = f"model.layers.{n}", self.config
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        query_norm, key_norm = (
            self._norm(f"{attention}.{side}_norm")[c.rotary_order] if normed else None
            for side, normed in (("q", c.query_norm), ("k", c.key_norm))
        )
        norms = {use: self._norm(f"{prefix}.{name}") for use, name in layer_norms(c).items()}
        return StackedLayer(
            qkv=self._qkv(attention),
            out=self._out(attention),
            mlp=self._mixture(mlp) if c.routed(n) else self._mlp(mlp, c.mlp_bias),
            query_norm=query_norm,
            key_norm=key_norm,
            front=self._front(attention, key_norm),
            **norms,
        )

    def _qkv(self, prefix: str) -> DeviceMatrix:
        c, names = self.config, [f"{prefix}.{name}_proj" for name in self.config.qkv_names]
        if c.heads_as_stored:
            return self._matrix(*names, bias=c.qkv_bias)
        bias = self._plain(*(f"{name}.bias" for name in names)) if c.qkv_bias else None
        whole = run_heads(c, self._plain(*(f"{name}.weight" for name in names)))
        return DeviceMatrix(self.ops.pack(whole), None if bias is None else run_heads(c, bias))

    def _out(self, prefix: str) -> DeviceMatrix:
        c, name = self.config, f"{prefix}.o_proj"
        if c.value_width == c.head_dim:
            return self._matrix(name, bias=c.out_bias)
        bias = self._plain(f"{name}.bias") if c.out_bias else None
        return DeviceMatrix(self.ops.pack(run_out(c, self._plain(f"{name}.weight"))), bias)

    def _front(self, prefix: str, key_norm: Tensor | None) -> Front | None:
        """Sinks, as wide as the cache's rows."""
        c = self.config
        if c.sink_logits:
            return Front(logits=self._plain(f"{prefix}.sinks", dtype=wide(self.dtype)))
        if not c.sinks:
            return None
        keys = self._plain(f"{prefix}.param_sink_key")[..., c.rotary_order].contiguous()
        if key_norm is not None:
            keys = self.ops.rms_norm(keys, key_norm, c.rms_norm_eps)
        values = torch.zeros_like(keys)
        if c.sink_values:
            learned = self._plain(f"{prefix}.param_sink_value")
            values = F.pad(learned, (0, c.head_dim - c.value_width))
        room = (0, self.ops.storage.width(c.head_dim) - c.head_dim)
        return Front(keys=F.pad(keys, room), values=F.pad(values, room))

    def _mlp(self, prefix: str, bias: bool = False) -> DeviceMlp:
        return DeviceMlp(
            self._matrix(f"{prefix}.gate_proj", f"{prefix}.up_proj", bias=bias),
            self._matrix(f"{prefix}.down_proj", bias=bias),
        )

    def _mixture(self, prefix: str) -> Mixture:
        c, sums = self.config, wide(self.dtype)
        r = c.router
        named = f"{prefix}.gate.e_score_correction_bias"
        return Mixture(
            self._plain(f"{prefix}.gate.weight", dtype=sums),
            DeviceMlp(self._experts(prefix, "gate", "up"), self._experts(prefix, "down")),
            self._mlp(f"{prefix}.shared_expert") if c.shared_intermediate_size else None,
            self._plain(f"{prefix}.router_scale", dtype=sums).flatten() if r is None else None,
            self._plain(f"{prefix}.gate.bias", dtype=sums) if r is not None and r.bias else None,
            self._plain(named, dtype=sums) if r is not None and r.choice_bias else None,
        )

    def _experts(self, prefix: str, *parts: str) -> DeviceMatrix:
        """Expert by expert into place, so that beside the finished ones one lies in memory."""
        whole: Tensor | None = None
        scales: list[Tensor] = []
        for e in range(self.config.experts):
            names = [f"{prefix}.experts.{e}.{part}_proj.weight" for part in parts]
            quantised = self._in_int8(names)
            if quantised is None:
                one_IO = self._plain(*names).T
            else:
                one_IO = quantised.weight
                assert quantised.scale is not None
                scales.append(quantised.scale)
            if whole is None:
                whole = one_IO.new_empty(self.config.experts, *one_IO.shape)
            if whole.dtype != one_IO.dtype:
                raise ValueError(f"{prefix}: some experts are int8 and some are not")
            whole[e].copy_(one_IO)
        assert whole is not None
        bias = None
        if self.config.expert_bias:
            experts = (f"{prefix}.experts.{e}" for e in range(self.config.experts))
            rows = (self._plain(*(f"{e}.{part}_proj.bias" for part in parts)) for e in experts)
            bias = torch.stack(list(rows))
        if scales:
            return DeviceMatrix(whole, bias, torch.stack(scales))
        return DeviceMatrix(self.ops.pack_experts(whole), bias)
