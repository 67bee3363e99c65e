"""Opens an assistant beside its target."""

from __future__ import annotations

from pathlib import Path

from fastslow.engine.backends.torch.assistant import AssistantDecoder
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.backends.torch.weights import TorchReader
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.host.files import about, is_file, read_object
from fastslow.engine.host.gguf_file import is_gguf
from fastslow.engine.model.assistant import joined
from fastslow.engine.model.base import Model, MtpModel
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.family import architecture_in

CONFIG = "config.json"


def is_assistant(path: Path) -> bool:
    """Tell whether what was named as a head is one: a GGUF file, or a folder whose architecture says so."""
    if is_gguf(path):
        return True
    return is_file(path / CONFIG) and "Assistant" in str(
        architecture_in(read_object(path / CONFIG))
    )


def load_assistant(path: Path, target: Model) -> MtpModel:
    """The assistant in a folder or a GGUF file, in the target's dtype and on its device. ValueError in one sentence for
    a target that it was not made for, or on which it does not run."""
    own = ModelConfig.from_folder(path)
    with about(path):
        config = joined(own, target.config)
    if not isinstance(target, Decoder):
        raise ValueError(
            f"{path}: an assistant runs beside a model on plain torch, not {type(target).__name__}"
        )
    weights = target.weights
    with Checkpoint.own(path, own).quantised(progress=False) as tensors:
        reader = TorchReader(weights.ops, weights.dtype, weights.device, tensors.read)
        return AssistantDecoder(config, reader, weights)
