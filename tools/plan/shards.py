"""Bytes that each rank will hold and send, from a config alone: nothing is read or allocated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

import torch

from fastslow.engine.backends.device import choose_device
from fastslow.engine.backends.torch.onednn import packable
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import wide
from fastslow.engine.parallel.decoder import specs_of
from fastslow.engine.parallel.sharding import Parallel, RankShard

EMBEDDING = "model.embed_tokens.weight"
_WIDE = re.compile(  # kept in float32
    r".*(\.mlp\.gate\..*|\.mlp\.router_scale|\.self_attn\.(sinks|\w+_conv\.weight)|_mhc_module\..*)"
)


@dataclass(frozen=True, slots=True)
class Share:
    """Part of a model that one rank holds. Sizes in bytes."""

    place: RankShard
    weights: int  # of its tensors as it runs them, the router and sinks in float32
    kv_per_token: int  # on each rank of the token's data-parallel rank
    elements: int  # of the checkpoint that the rank reads


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """All ranks' shares of a model in one dtype."""

    config: ModelConfig
    parallel: Parallel
    dtype: torch.dtype
    shares: list[Share]

    @classmethod
    def of(
        cls, config: ModelConfig, parallel: Parallel, dtype: torch.dtype, device: str = "auto"
    ) -> ShardPlan:
        """Place every tensor of the config. ValueError: the model cannot be shared so, or has a tensor that no rule
        cuts. device: that the ranks run on; "auto" is an accelerator where there is one, else the CPU. A CPU wants
        its matrices packed, so a tied head lies there beside the embedding."""
        places = RankShard.all(config, parallel)
        specs = specs_of(places[0])
        kind = choose_device(device).kind if device == "auto" else device
        twice = config.tie_word_embeddings and kind == "cpu" and packable(dtype)
        shares = []
        for place in places:
            weights = elements = 0
            for spec in specs:
                parts = place.parts(spec)
                count = sum(prod(s.stop - s.start for s in part) for part in parts)
                kept = wide(dtype) if _WIDE.fullmatch(spec.name) else dtype
                weights += count * kept.itemsize * (2 if twice and spec.name == EMBEDDING else 1)
                elements += count
            kv = place.local.state_layout.token_bytes(dtype)
            shares.append(Share(place, weights, kv, elements))
        return cls(config, parallel, dtype, shares)

    def layer_traffic(self, rows: int) -> dict[str, int]:
        """Bytes that all ranks send in sum in one layer of a step, by collective. rows: with padding. A row's elements
        go to the other ranks of attention, and to all others before the MLP; as many partial sums come back."""
        place = self.shares[0].place
        row = rows * self.config.hidden_size * self.dtype.itemsize
        attention, mlp = place.attention - 1, self.parallel.ranks - 1
        return {
            "attention all-gather": row * attention,
            "attention reduce-scatter": row * attention,
            "mlp all-gather": row * mlp,
            "mlp reduce-scatter": row * mlp,
        }
