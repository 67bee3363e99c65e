"""A checkpoint becomes W8A8, layer by layer: no more than a layer is in memory in float."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.checkpoint.quantised import KV_TYPE, Scheme
from fastslow.engine.host.progress import Report, silent
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import QuantLinear
from fastslow.engine.model.tensors import layer_names, tensor_shapes
from fastslow.models.folder import fresh_folder, require_vacant
from fastslow.tools.job_options import QuantizeOptions
from fastslow.tools.kept import KeptWork
from fastslow.tools.quantize.quantize_layer import kv_scales, quantize_layer
from fastslow.tools.quantize.watched import ROUTER, Tensors, is_known
from fastslow.tools.quantize.writer import CheckpointWriter, described

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
DRIFT = "drift"  # among a kept layer's tensors
LIMIT = 0.52  # of the float checkpoint's bytes


def int8_embedding(config: ModelConfig) -> bool:
    """Tell whether embedding and head must be int8 for the whole to stay below 0.52 of its bytes."""
    before = after = 0
    for name, shape in tensor_shapes(config).items():
        size = 2 * prod(shape)
        before += size
        floats = len(shape) == 1 or not name.endswith(".weight")
        if floats or name.endswith((f"{ROUTER}.weight", EMBEDDING, HEAD)):
            after += size
        else:
            after += prod(shape) + 2 * shape[0]  # and a scale for each row
    return after > LIMIT * before


@dataclass(slots=True)
class QuantizedCheckpoint:
    """Result of quantising a checkpoint: where it lies, its calibration (token ids), the drift of each layer."""

    folder: Path
    texts: list[list[int]]
    drifts: list[float] = field(default_factory=list)
    nbytes: int = 0
    source_bytes: int = 0


def check_known(source: Path) -> ModelConfig:
    """The config of a checkpoint. ValueError if its layers have parts that smoothing does not know."""
    config = ModelConfig.from_folder(source)
    if not all(map(is_known, config.layers)):
        raise ValueError(f"{config.architecture} cannot be quantised, only run as exported")
    return config


def quantize(
    source: Path,
    out: Path,
    texts: Iterator[list[int]],
    options: QuantizeOptions | None = None,
    report: Report = silent,
) -> QuantizedCheckpoint:
    """Write the W8A8 of a float checkpoint to a folder that is new or empty; until then `KeptWork` has what is done.
    texts: calibration, token ids, as many as are needed. ValueError: the source is quantised already, of an unknown
    architecture or not finite, the folder is not free, or there are no texts."""
    require_vacant(out)
    options = options or QuantizeOptions()
    if Scheme.from_folder(source) is not None:
        raise ValueError(f"{source} is quantised already")
    config = check_known(source)
    checkpoint, kept = Checkpoint.open(source, config), KeptWork(out, source, options)
    with checkpoint.reader(False) as read, fresh_folder(out) as folder, torch.inference_mode():
        work = _Work(config, read, options, report)
        made = QuantizedCheckpoint(out, work.calibrate(texts, kept))
        writer = CheckpointWriter(folder, options.kv)
        writer.take(work.outer())
        for n in range(len(config.layers)):
            layer = kept.part(f"layer-{n}", partial(work.layer, n, made.texts, kept))
            kept.drop(f"rows-{n}")
            made.drifts.append(float(layer.pop(DRIFT)))
            writer.take(dict(sorted(layer.items())))
        writer.close(source)
        made.nbytes = writer.nbytes
        made.source_bytes = sum(read(name).nbytes for name in tensor_shapes(config))
    kept.drop()
    return made


@dataclass(slots=True)
class _Work:
    config: ModelConfig
    read: Callable[[str], Tensor]
    options: QuantizeOptions
    report: Report
    _embedding: Tensor | QuantLinear = field(init=False)

    def __post_init__(self) -> None:
        own = self.read(EMBEDDING)
        wanted = self.options.embedding
        small = int8_embedding(self.config) if wanted == "auto" else wanted == "int8"
        self._embedding = QuantLinear.of(own) if small else own

    def calibrate(self, texts: Iterator[list[int]], kept: KeptWork) -> list[list[int]]:
        def drawn() -> Iterator[list[int]]:
            tokens, most = 0, self.options.tokens
            while tokens < most and (text := next(texts, None)) is not None:
                tokens += len(text)
                said = f"answers to calibrate with, {tokens:,} tokens"
                self.report(0.5 * min(1.0, tokens / most), said)
                yield text

        found = kept.lists("texts", drawn)
        if not found:
            raise ValueError("calibration needs at least one text, got none")
        return found

    def rows(self, texts: list[list[int]]) -> Tensors:
        """Return the inputs of the first layer, in the float model and in the quantised one."""
        at, table = torch.tensor([token for text in texts for token in text]), self._embedding
        rows = self.read(EMBEDDING)[at].float()
        if not isinstance(table, QuantLinear):
            return {"float": rows, "int8": rows.clone()}
        int8 = QuantLinear(table.weight_OI[at], table.scale_O[at])
        return {"float": rows, "int8": int8.dequantised()}

    def outer(self) -> Tensors:
        """The tensors that belong to no layer, as `described`."""
        found = described(EMBEDDING, self._embedding)
        found |= described(NORM, self.read(NORM))
        if not self.config.tie_word_embeddings:
            head, small = self.read(HEAD), isinstance(self._embedding, QuantLinear)
            found |= described(HEAD, QuantLinear.of(head) if small else head)
        return found

    def layer(self, n: int, texts: list[list[int]], kept: KeptWork) -> Tensors:
        """A quantised layer's tensors as `described`, with its drift. The rows that it hands on are kept."""
        layers = len(self.config.layers)
        report = lambda share: self.report(
            0.5 + 0.5 * (n + share) / layers, f"layer {n + 1} of {layers}"
        )
        rows, lengths = kept.part(f"rows-{n}", lambda: self.rows(texts)), [*map(len, texts)]
        made, float_NH, int8_NH = quantize_layer(
            self.config, n, self._tensors(n), lengths, rows["float"], rows["int8"], report
        )
        prefix, found = f"model.layers.{n}", {DRIFT: torch.tensor(made.drift)}
        for name in layer_names(self.config, n):
            own = name.removeprefix(f"{prefix}.")
            matrix = made.matrices.get(own.removesuffix(".weight"))
            if matrix is not None and name.endswith(".weight"):
                found |= described(name, matrix)
            else:  # what smoothing changed by powers of two fits the dtype it had
                found |= described(name, made.tensors[own].to(self.read(name).dtype))
        if self.options.kv:
            for part, scale in zip("kv", kv_scales(made.kv)):
                found[f"{KV_TYPE} {prefix}.self_attn.{part}_proj.kv_cache_scale"] = scale
        kept.keep(f"rows-{n + 1}", {"float": float_NH, "int8": int8_NH})
        return found

    def _tensors(self, n: int) -> Tensors:
        prefix = f"model.layers.{n}."
        names = layer_names(self.config, n)
        return {name.removeprefix(prefix): self.read(name).float() for name in names}
