"""Opens an assistant beside its target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fastslow.engine.backends.cpu import store
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Sources
from fastslow.engine.backends.cpu.mtp import AssistantKernels, CpuAssistant, assistant_formats
from fastslow.engine.backends.cpu.packed import Arena
from fastslow.engine.backends.cpu.pieces.limits import unsupported
from fastslow.engine.backends.torch.assistant import AssistantDecoder, ClusteredHead
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.host.files import about, is_file, read_object
from fastslow.engine.host.gguf_file import is_gguf
from fastslow.engine.model.base import Model, MtpModel
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.family import architecture_in
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.ops import Ops
from fastslow.engine.model.parts import WeightReader
from fastslow.engine.model.shape import Layer
from fastslow.engine.model.tensors import EMBEDDING, POST

CONFIG = "config.json"


def is_assistant(path: Path) -> bool:
    """Tell whether what was named as a head is one: a GGUF file, or a folder whose architecture says so."""
    try:
        if is_gguf(path):
            return True
        config = read_object(path / CONFIG) if is_file(path / CONFIG) else {}
    except (OSError, ValueError):
        return False  # what reads heads says what is wrong
    return "Assistant" in str(architecture_in(config))


def load_assistant(path: Path, target: Model) -> MtpModel:
    """The assistant in a folder or a GGUF file, on the target's backend. ValueError in one sentence for a target
    that it was not made for, or on which it does not run."""
    own = ModelConfig.from_folder(path)
    with about(path):
        config = joined(own, target.config)
    checkpoint = Checkpoint.own(path, own)
    if isinstance(target, Decoder):
        weights = target.weights
        with checkpoint.quantised(progress=False) as tensors:
            reader = WeightReader(weights.ops, weights.dtype, weights.device, tensors.read)
            return AssistantDecoder(config, reader, weights)
    if not isinstance(target, CpuDecoder):
        runs = "on plain torch or the CPU kernels, in one process"
        raise ValueError(f"{path}: an assistant runs beside a model {runs}, not here")
    if (why := unsupported(config)) is not None:
        raise ValueError(f"{path}: the CPU kernels do not run this assistant: {why}")
    return _on_kernels(path, config, checkpoint, target)


def _on_kernels(
    path: Path, config: ModelConfig, checkpoint: Checkpoint, target: CpuDecoder
) -> CpuAssistant:
    formats = assistant_formats(target.formats)
    arena = Arena.of(config, formats)

    def packed_path() -> Path | None:
        return store.packed_path(path, formats.name, arena)

    with checkpoint.quantised(progress=False) as tensors:
        if (memory := store.load(packed_path(), arena)) is None:
            sources = Sources(tensors.read, lambda name: None, tensors.linear)
            memory = store.create(packed_path(), arena, sources, packed_path)
        kernels = AssistantKernels(config, formats, arena, memory, target)
        place = torch.device("cpu")
        reader = WeightReader(Ops(), torch.float32, place, tensors.read)
        head = None
        if config.assists is not None and config.assists.clusters:
            head = ClusteredHead(config, reader, tensors.read(EMBEDDING))
        return CpuAssistant(kernels, reader.plain(f"{POST}.weight"), head)


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
