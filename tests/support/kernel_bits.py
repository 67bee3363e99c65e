"""A program: what the kernels compute, bit for bit, a digest for each format. It prints JSON, the level first.

Its models are tiny ones of random numbers: attention with keys and values in both formats, mixtures, gated delta nets, every product.
"""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf_rows
import numpy as np
import texts
import torch
from checkpoints import write_family, write_moge
from gguf_hybrid import write_hybrid

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.formats import GGUF_FORMATS
from fastslow.engine.backends.loader import load_model

SIZES = [129, 1, 1, 2, 8, 30]  # rows of each step
OPTIONS = [{"dtype": "float32"}, {"dtype": "bfloat16"}]
OPTIONS += [{"quantization": "int8"}, {"quantization": "int4"}, {"kv_dtype": "int8"}]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def bits() -> dict[str, str]:
    torch.set_num_threads(2)
    found = {"level": library.level()}
    with TemporaryDirectory() as folder:
        alone = [write_family(Path(folder, "qwen3"), "qwen3"), write_moge(Path(folder, "moge"))]
        for path in [*alone, write_hybrid(Path(folder, "qwen35moe"), "qwen35moe")]:
            for options in OPTIONS if path in alone else OPTIONS[:-1]:
                model = load_model(path, progress=False, **options)
                logits = texts.logits(model, texts.tokens_of(sum(SIZES)), SIZES)
                found[f"{path.name} {options}"] = digest(logits.numpy().tobytes())
    random = np.random.default_rng(0)
    for name in gguf_rows.TYPES:
        inputs = 3 * gguf_rows.block_inputs(name)
        tiles = gguf_rows.packed(name, gguf_rows.like_weights(name, 70, inputs), inputs)
        x = random.standard_normal((33, inputs))
        products = [gguf_rows.product(GGUF_FORMATS[name], tiles, 70, x[:n]) for n in (1, 5, 33)]
        found[name] = digest(np.concatenate(products).tobytes())
    return found


if __name__ == "__main__":
    print(json.dumps(bits()))
