"""Opens an assistant beside its target."""

from __future__ import annotations

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
from fastslow.engine.backends.torch.reference import ReferenceOps
from fastslow.engine.backends.torch.weights import TorchReader
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.host.files import about, is_file, read_object
from fastslow.engine.host.gguf_file import is_gguf
from fastslow.engine.model.assistant import joined
from fastslow.engine.model.base import Model, MtpModel
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.family import architecture_in
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
            reader = TorchReader(weights.ops, weights.dtype, weights.device, tensors.read)
            return AssistantDecoder(config, reader, weights)
    if not isinstance(target, CpuDecoder):
        raise ValueError(f"{path}: an assistant does not run beside a {type(target).__name__}")
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
        reader = TorchReader(ReferenceOps(), torch.float32, place, tensors.read)
        head = None
        if config.assists is not None and config.assists.clusters:
            head = ClusteredHead(config, reader, tensors.read(EMBEDDING))
        return CpuAssistant(kernels, reader.plain(f"{POST}.weight"), head)
