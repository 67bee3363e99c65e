"""From a checkpoint folder to a decoder on the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from fastslow.engine.backends.cpu import store
from fastslow.engine.backends.cpu.decoder import MOST_RATIO, CpuDecoder
from fastslow.engine.backends.cpu.formats import Format, Formats
from fastslow.engine.backends.cpu.kv import TiledStorage
from fastslow.engine.backends.cpu.packed import Arena, ReadBlocks, Sources
from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.model.checkpoint import BLOCKS
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.quantised import QuantReader


def load_packed(
    folder: Path,
    config: ModelConfig,
    formats: Formats,
    reader: Callable[[], AbstractContextManager[QuantReader]],
    storage: type[KVStorage] = TiledStorage,
) -> CpuDecoder:
    """The model of a checked folder, packed on first use.

    reader: opens its tensors. storage: of keys and values.
    """
    arena = Arena.of(config, formats)
    path = store.packed_path(folder, formats.name)
    memory = store.load(path, arena)
    if memory is None:
        with reader() as tensors, _blocks(folder, formats) as blocks:
            sources = Sources(tensors.read, blocks, tensors.linear)
            memory = store.create(path, arena, sources)
    return CpuDecoder(config, formats, arena, memory, storage=storage)


def runs(config: ModelConfig) -> str | None:
    """None, or what about a model the kernels cannot run."""
    if config.pangu_v2 is not None:
        return f"they do not know {config.architecture}"
    if config.heads // config.kv_heads > MOST_RATIO:
        return f"{config.heads} heads share {config.kv_heads} key heads, over {MOST_RATIO} to one"
    return None


@contextmanager
def _blocks(folder: Path, formats: Formats) -> Iterator[ReadBlocks]:
    path = folder / BLOCKS
    if formats.layers is not Format.INT4 or not path.is_file():
        yield lambda name: None
        return
    with safe_open(path, framework="np") as file:
        names = set(file.keys())

        def read(name: str) -> NDArray[np.uint8] | None:
            return file.get_tensor(name) if name in names else None

        yield read
