"""The dense checkpoint that a MoGE model is made from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.checkpoint.checkpoint import floats
from fastslow.engine.families.llama import EMBEDDED, LLAMA
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import tensor_shapes

OFFICIAL = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
LINEARS = tuple(OFFICIAL)
WORKERS = 2  # threads: most of the work is not torch's, which has threads of its own
PLAIN = (*LLAMA.architectures, *EMBEDDED.architectures)


def dense_config(folder: Path) -> ModelConfig:
    """The config of a folder that can become a MoGE model. ValueError: another architecture than Llama and openPangu
    Embedded, scaled rotary or MLP biases."""
    config = ModelConfig.from_folder(folder)
    path = folder / "config.json"
    if config.architecture not in PLAIN:
        raise ValueError(
            f"{path}: architectures must be {' or '.join(PLAIN)}, got {config.architecture}"
        )
    alike = AlikeLayers.of(config)
    if (scaling := alike.rope.scaling) is not None:
        raise ValueError(f"{path}: rope_scaling must be absent, got {scaling.kind!r}")
    if alike.dense is not None and alike.dense.bias:
        raise ValueError(f"{path}: mlp_bias must be false, got true: MoGE experts have no biases")
    return config


class Dense:
    """The weights of a dense Llama-like model in a Hugging Face folder, by layer and linear. weights: the GGUF
    file that they are read from; None = the folder has them."""

    def __init__(
        self, folder: Path, dtype: torch.dtype = torch.bfloat16, weights: Path | None = None
    ) -> None:
        self.config = dense_config(folder)
        names = [*tensor_shapes(self.config)]
        with floats(weights or folder, self.config) as read, ThreadPoolExecutor(WORKERS) as pool:
            read_each = pool.map(lambda name: read(name).to(dtype), names)
            self.tensors = dict(zip(names, read_each, strict=True))

    def weight(self, layer: int, linear: str) -> Tensor:
        return self.tensors[f"model.layers.{layer}.{OFFICIAL[linear]}.weight"]

    def bias(self, layer: int, linear: str) -> Tensor | None:
        return self.tensors.get(f"model.layers.{layer}.{OFFICIAL[linear]}.bias")

    @property
    def embedding(self) -> Tensor:
        return self.tensors["model.embed_tokens.weight"]

    @property
    def head(self) -> Tensor:
        tied = self.config.tie_word_embeddings
        return self.embedding if tied else self.tensors["lm_head.weight"]
