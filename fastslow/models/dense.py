"""The dense model that `smollm2-moge` is made from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from fastslow.engine.checkpoint.checkpoint import floats
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


class Dense:
    """The weights of a Llama in a GGUF file, in bfloat16, by layer and linear."""

    def __init__(self, gguf: Path) -> None:
        self.config = ModelConfig.from_folder(gguf)
        names = [*tensor_shapes(self.config)]
        with floats(gguf, self.config) as read, ThreadPoolExecutor(WORKERS) as pool:
            read_each = pool.map(lambda name: read(name).to(torch.bfloat16), names)
            self.tensors = dict(zip(names, read_each, strict=True))

    def weight(self, layer: int, linear: str) -> Tensor:
        return self.tensors[f"model.layers.{layer}.{OFFICIAL[linear]}.weight"]
