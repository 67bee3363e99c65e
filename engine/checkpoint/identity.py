"""Fingerprints of models: a file of settings says which model it was found with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from fastslow.engine.checkpoint.checkpoint import Checkpoint, open_shard
from fastslow.engine.host.gguf_file import gguf_files, is_gguf
from fastslow.engine.model.config import ModelConfig

SAMPLED, ROWS = 512, 4  # tensors, spread over all of them, and the first rows of each
DIGEST = "model_digest"  # in a file of settings, beside "model", which is for people


def model_digest(folder: Path) -> str:
    """A model's fingerprint: names and shapes of all tensors, and some of their values.

    A copy of the folder has the same one; a fine-tune or a quantised copy is another model. ValueError: the
    folder holds no weights that fit its config."""
    files = sorted((*folder.glob("*.safetensors"), folder / "config.json"))
    files = gguf_files(folder) if is_gguf(folder) else files
    facts = [(path, path.stat()) for path in files if path.is_file()]
    return _digest(folder, tuple((p.name, f.st_size, f.st_mtime_ns) for p, f in facts))


def check_model(record: Mapping[str, Any], folder: Path | None, where: str) -> None:
    """Refuse settings (`record`, of the file `where`) that were found with another model than `folder`'s (None =
    any). Files without a fingerprint are taken as they are."""
    theirs, model = record.get(DIGEST), record.get("model")
    if theirs is None and model is not None:
        _say(f"{where} names model {model!r} without a fingerprint: it is taken as it is")
    if theirs is None or folder is None:
        return
    try:
        mine = model_digest(folder)
    except ValueError as error:
        _say(f"{where} cannot be held against the model: {error}")
        return
    if theirs != mine:
        raise ValueError(
            f"{where} was found with model {model!r} ({str(theirs)[:8]}), and this model is "
            f"{folder.name!r} ({mine[:8]}): run `fastslow tune` with this one, into another file"
        )


@cache
def _say(sentence: str) -> None:
    """Once: a file may be read for each call."""
    logger.warning(sentence)


@lru_cache(maxsize=16)
def _digest(folder: Path, _state: tuple[tuple[str, int, int], ...]) -> str:
    checkpoint = Checkpoint.own(folder, ModelConfig.from_folder(folder))
    every = sorted((name, path) for path, names in checkpoint.files.items() for name in names)
    chosen = {every[i * len(every) // SAMPLED][0] for i in range(SAMPLED)}
    parts: dict[str, bytes] = {}
    for path, names in checkpoint.files.items():
        with open_shard(path) as shard:
            for name in names:
                found = shard.get_slice(checkpoint.stored.get(name, name))
                shape = found.get_shape()
                parts[name] = f"{name} {found.get_dtype()} {list(shape)}".encode()
                if name in chosen and all(shape) and shape:
                    values = found[:ROWS].contiguous().view(torch.uint8)
                    parts[name] += values.numpy().tobytes()
    return hashlib.sha256(b"\n".join(parts[name] for name, _ in every)).hexdigest()
