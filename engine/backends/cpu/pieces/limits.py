"""The models that the kernels run."""

from __future__ import annotations

from fastslow.engine.backends.alike import KERNELS, AlikeLayers, unlike
from fastslow.engine.backends.cpu import library
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.latent import LatentAttention


def unsupported(config: ModelConfig) -> str | None:
    """Say why the kernels cannot run a model; None = they run it."""
    if (why := unlike(config, KERNELS)) is not None:
        return why
    alike = AlikeLayers.of(config, KERNELS)
    routed, recurrent = alike.routed, alike.recurrent
    token = config.per_layer_embedding
    try:
        every = {x.mixer for x in config.layers}
        kept = (x.absorbed if isinstance(x, LatentAttention) else x for x in every)
        for a in (x for x in kept if isinstance(x, GroupedAttention)):
            library.check_limits(
                heads=a.heads,
                kv_heads=a.kv_heads,
                heads_per_kv_head=a.heads // a.kv_heads,
                head_dim=a.head_dim,
                inputs=a.heads * a.head_dim,
                sinks=a.sinks,
            )
        library.check_limits(
            layers=len(config.layers),
            hidden=config.hidden_size,
            neurons=alike.widest,
            vocabulary=config.vocab_size,
            experts=routed.experts if routed else 0,
            chosen=config.chosen,
            expert_neurons=routed.expert.width if routed else 0,
            token_width=token.width if token else 0,
        )
        for x in (x for x in every if isinstance(x, LatentAttention) and x.conv):
            library.check_limits(inputs=sum(x.convolved.values()), kernel=x.conv)
        for m in (x for x in every if isinstance(x, LatentAttention)):
            if (i := m.indexer) is not None:
                library.check_limits(index_heads=i.heads, head_dim=i.dim, inputs=i.heads * i.dim)
        if config.streams is not None:
            library.check_limits(streams=config.streams.count)
        if recurrent is not None:
            library.check_limits(inputs=3 * recurrent.channels, kernel=recurrent.kernel)
        if isinstance(recurrent, GatedDelta):
            for heads in (recurrent.key_heads, recurrent.value_heads):
                library.check_limits(heads=heads)
            for dim in (recurrent.key_dim, recurrent.value_dim):
                library.check_limits(head_dim=dim)
    except ValueError as error:
        return f"they have no room for it: {error}"
    return None
