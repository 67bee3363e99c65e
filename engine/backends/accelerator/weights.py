"""The weights of a decoder for accelerators: experts of a layer in one tensor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.delta import SideBySideDelta
from fastslow.engine.backends.accelerator.kv import BlockStorage, LatentStorage
from fastslow.engine.backends.accelerator.ops import Front, ModuleOps, PagedOps
from fastslow.engine.backends.accelerator.step import unrecorded
from fastslow.engine.backends.alike import ACCELERATORS, AlikeLayers
from fastslow.engine.backends.torch.weights import Weights
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.mixers.grouped import GroupedModule
from fastslow.engine.model.mixers.latent import LatentModule
from fastslow.engine.model.norms import Norm, NormModule
from fastslow.engine.model.ops import Linear, Read, ReadQuant, no_int8
from fastslow.engine.model.parts import Mixer, MixerModule, WeightReader


@dataclass
class DeviceReader(WeightReader):
    """For accelerators: matrices as `PagedOps.pack` makes them, int8 ones [I, O], experts of a layer in
    one tensor [E, I, O]."""

    kernels: PagedOps = field(kw_only=True)

    def norm(self, name: str, kind: Norm) -> NormModule:
        """In the dtype that kernels want, rounded after the offset is added."""
        found = super().norm(name, kind)
        return replace(found, weight=found.weight.to(self.dtype))

    def head(self, name: str, tied_VH: Tensor | None) -> Linear:
        return super().head(name, None) if tied_VH is None else Linear(self.kernels.pack(tied_VH))

    def mixer(self, mixer: Mixer, prefix: str) -> MixerModule:
        if isinstance(mixer, GatedDelta):
            return SideBySideDelta.load(mixer, prefix, self)
        return super().mixer(mixer, prefix)

    def in_int8(self, names: Sequence[str]) -> Linear | None:
        found = super().in_int8(names)
        return None if found is None else found._replace(weight=found.weight.T.contiguous())

    def heads(self, weight_NOI: Tensor) -> Any:
        """One tensor [N, I, O]."""
        return weight_NOI.mT.contiguous()

    def experts(self, prefixes: Sequence[str], sides: Sequence[str], bias: bool) -> Linear:
        """Expert by expert into place, so that beside the finished ones one lies in memory."""
        whole: Linear | None = None
        for e, prefix in enumerate(prefixes):
            names = [f"{prefix}.{side}_proj" for side in sides]
            weights = [f"{name}.weight" for name in names]
            one = self.in_int8(weights) or Linear(self.plain(*weights).T)
            if bias:
                one = one._replace(bias=self.plain(*(f"{name}.bias" for name in names)))
            if whole is None:
                count = len(prefixes)
                whole = Linear._make(
                    None if x is None else x.new_empty(count, *x.shape) for x in one
                )
            if (whole.scale is None) != (one.scale is None):
                among = prefix.rpartition(".")[0]
                raise ValueError(f"{among}: some experts are int8 and some are not")
            for place, x in zip(whole, one, strict=True):
                if place is not None and x is not None:
                    place[e].copy_(x)
        assert whole is not None
        if whole.scale is not None:
            return whole
        return whole._replace(weight=self.kernels.pack_experts(whole.weight))

    def _pack(self, parts: list[Tensor]) -> Tensor:
        return self.kernels.pack(torch.cat(parts).to(self.device, self.dtype))


class Stacked(Weights):
    """`Weights` for the kernels of a device.

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
        self.alike, self.kernels = AlikeLayers.of(config.with_mtp, ACCELERATORS), ops
        ops.check(config.with_mtp, dtype)
        if int8 is not no_int8 and not ops.runs_int8:
            logger.warning("int8 weights do not run on this device, they are multiplied out")
            int8 = no_int8
        if ops.records and (why := unrecorded(config)):
            logger.info("steps with {} are not recorded: they run kernel by kernel", why)
        self.storage: type[BlockStorage] = LatentStorage if ops.shape.latent else ops.storage
        reader = DeviceReader(ModuleOps(ops), dtype, device, read, int8, kernels=ops)
        super().__init__(config, reader)
        every = (*self.layers, *(head.layer for head in self.mtp))
        self.fronts = [self._front(layer.mixer) for layer in every]

    def of_mtp(self, head: int) -> Stacked:
        """The same weights as those of a model whose last layers are the MTP layers, with the last norm of one of them."""
        view = copy.copy(self)
        view.config = self.config.with_mtp
        view.layers, view.norm = [*self.layers, *(x.layer for x in self.mtp)], self.mtp[head].norm
        return view

    def _front(self, mixer: MixerModule) -> Front | None:
        """What every row of a layer sees before its text, sinks as wide as the cache's rows."""
        if isinstance(mixer, LatentModule) and (keys := mixer.sinks) is not None:
            return Front(None, keys, keys[..., : mixer.mixer.latent])
        if not isinstance(mixer, GroupedModule):
            return None
        if mixer.sink_logits is not None:
            return Front(logits=mixer.sink_logits)
        if mixer.sinks is None:
            return None
        dim = mixer.mixer.head_dim
        room = (0, self.storage.width(dim) - dim)
        return Front(None, *(F.pad(side, room) for side in mixer.sinks))
