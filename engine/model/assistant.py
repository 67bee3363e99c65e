"""A model beside its target: which of the target's layers an assistant reads."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.shape import Layer


def joined(own: ModelConfig, target: ModelConfig) -> ModelConfig:
    """An assistant each of whose layers shares the rows of the target's last layer that sees a window, or all, as it
    does. ValueError in one sentence for a target that it was not made for."""
    if (assists := own.assists) is None or not target.architecture.startswith(assists.target):
        raise ValueError(
            f"{own.architecture} is no assistant that drafts for {target.architecture}"
        )
    sizes = {
        "hidden_size": (assists.hidden, target.hidden_size),
        "vocab_size": (own.vocab_size, target.vocab_size),
    }
    layers = []
    for n, layer in enumerate(own.layers):
        found = _read_by(layer, target)
        mine, theirs = layer.mixer, target.layers[found].mixer
        assert isinstance(mine, GroupedAttention) and isinstance(theirs, GroupedAttention)
        for name in ("kv_heads", "head_dim", "window"):
            sizes[f"{name} of layer {n}"] = getattr(mine, name), getattr(theirs, name)
        # the text's last token is not there yet, and what lies before its window may be gone
        window = mine.window - (mine.window > 1)
        mine = replace(mine, shares=target.state_layout.owner(found), window=window)
        layers.append(replace(layer, mixer=mine))
    for name, (asked, has) in sizes.items():
        if asked != has:
            raise ValueError(f"it drafts for a model with {name} {asked}, and this one has {has}")
    return replace(own, layers=tuple(layers))


def _read_by(layer: Layer, target: ModelConfig) -> int:
    """The target's last layer of this kind."""
    every = [x.mixer if isinstance(x.mixer, GroupedAttention) else None for x in target.layers]
    windowed = isinstance(layer.mixer, GroupedAttention) and layer.mixer.window > 0
    alike = [n for n, x in enumerate(every) if x is not None and (x.window > 0) == windowed]
    if not alike:
        kind = "window" if windowed else "full attention"
        raise ValueError(f"it reads a layer with {kind}, and this model has none")
    return alike[-1]
