"""From a head's file to what runs it."""

from __future__ import annotations

from pathlib import Path

from loguru import logger
from torch import Tensor

from fastslow.draft.head.compiled import KernelRunner
from fastslow.draft.head.config import HeadConfig
from fastslow.draft.head.head import Head, read_head, read_metadata
from fastslow.draft.head.plain import TorchRunner
from fastslow.draft.head.runner import Runner
from fastslow.draft.head.target import Ends, StoredEnds, fingerprint, read_ends, stored_ends
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.ops.cpu import library


def load_head(path: Path, target: Path) -> Runner:
    """The head in a file, for the target in a checkpoint folder; on the CPU, wherever that one runs.

    Raises:
        ValueError: one sentence about a file that is no head, or one of another target.
    """
    config, weights = read_head(path)
    theirs = read_metadata(path).get("target")
    if theirs is not None and theirs != fingerprint(target):
        logger.warning("head {} was trained for another target: few drafts may be accepted", path)
    layers = ModelConfig.from_folder(target).layers
    if max(config.layers) >= layers:
        raise ValueError(
            f"head {path} reads layer {max(config.layers)} of its target, which has {layers}"
        )
    stored = stored_ends(target) if library.available() else None
    ends = read_ends(target) if stored is None else stored
    largest, known = int(weights["tokens"].max()), len(ends.embedding)
    if ends.embedding.shape[1] != config.hidden or largest >= known:
        raise ValueError(
            f"head {path}: the head is of a target with hidden_size={config.hidden} and a vocabulary "
            f"of at least {largest + 1}; this one has {ends.embedding.shape[1]} and {known}"
        )
    return runner_of(config, weights, ends)


def runner_of(config: HeadConfig, weights: dict[str, Tensor], ends: Ends | StoredEnds) -> Runner:
    """On the compiled kernels where they run, else in torch, which one log line says."""
    if isinstance(ends, StoredEnds) or library.available():
        return KernelRunner(config, weights, ends)
    logger.info("the draft head runs in plain torch, where it takes longer than it may bring")
    return TorchRunner(Head(config, weights, ends))
