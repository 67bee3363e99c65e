"""Loading a checkpoint: a folder of config.json and safetensors, or a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from loguru import logger
from numpy.typing import NDArray

from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.ops import PagedOps
from fastslow.engine.backends.accelerator.weights import Stacked
from fastslow.engine.backends.alike import ACCELERATORS, unlike
from fastslow.engine.backends.cpu import library, store
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import (
    EMBEDDING,
    GGUF_FORMATS,
    QUANTIZATIONS,
    Format,
    Formats,
    ReadBlocks,
    Sources,
)
from fastslow.engine.backends.cpu.kv import Int8Tiles, TiledStorage
from fastslow.engine.backends.cpu.library import level
from fastslow.engine.backends.cpu.mtp import CpuMtp, MtpKernels
from fastslow.engine.backends.cpu.packed import Arena
from fastslow.engine.backends.cpu.pieces.limits import unsupported
from fastslow.engine.backends.device import DeviceChoice, choose_device, ops_for, paged_ops_for
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.backends.torch.weights import Weights
from fastslow.engine.checkpoint.checkpoint import BLOCKS, Checkpoint, blocks
from fastslow.engine.checkpoint.gguf_shard import GgufShard
from fastslow.engine.checkpoint.published.layout import Published
from fastslow.engine.checkpoint.quantised import Scheme
from fastslow.engine.host.files import about, is_file, shown
from fastslow.engine.host.gguf_file import drafts_beside, is_gguf
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.token_input import TABLE
from fastslow.engine.model.ops import no_int8
from fastslow.engine.model.parts import Table, WeightReader
from fastslow.engine.model.tensors import mtp_shapes

W8A8 = "w8a8"
OWN = "own"  # a GGUF file's own numbers, or those of a published checkpoint
PACKERS = 2  # threads that pack
KV_DTYPES = ("auto", "int8", "model")

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")
}


def load_model(
    folder: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    progress: bool = True,
    quantization: str = "none",
    kv_dtype: str = "auto",
) -> Model:
    """The model in `folder`, or of a GGUF file, ready to run.

    dtype: "bfloat16", "float16", "float32", "float64", the torch dtype, or "auto": the
    checkpoint's own. device: "cpu", "cuda", "npu", or "auto": an accelerator where there is one.
    progress: draw a bar on a terminal while reading. quantization: "int8" or "int4" weights, on the
    CPU; "w8a8" for a checkpoint that is quantised so; "none" runs the dtype; "auto" is w8a8 or int4
    where the folder is quantised so, or came from a 4-bit file, and no dtype is asked for, the own numbers of a
    GGUF file or a published checkpoint where no dtype is asked for either, else none.
    kv_dtype: of keys and values: "int8" (a scale per token and head, on the CPU kernels), "model" (the
    model's own), or "auto": int8 for a w8a8 checkpoint that is made for it, else the model's. Raises
    ValueError in one sentence, before any weight is allocated, for a folder that
    does not hold the model its config.json describes.
    """
    if kv_dtype not in KV_DTYPES:
        raise ValueError(f"kv_dtype {shown(kv_dtype)} is not one of {', '.join(KV_DTYPES)}")
    folder = Path(folder)
    config, place = ModelConfig.from_folder(folder), choose_device(device)
    with about(folder):
        config.check_alone()
    source = _Source.open(folder, config)
    config = source.config
    ops = paged_ops_for(place) if place.kind != "cpu" else None
    picked = pick_dtype(dtype, config, place, ops)
    if quantization == "auto":
        quantization = source.own_quantization(dtype, place.kind)
    if quantization == W8A8 and source.scheme is None:
        raise ValueError(
            f"quantization {W8A8!r} runs checkpoints that are quantised so, and {folder} is not: "
            "see fastslow quantize"
        )
    if (source.shard or source.method) and quantization != OWN:
        runs = str(picked).removeprefix("torch.") if quantization == "none" else quantization
        logger.info("{} runs as {}, not in its own numbers", folder, runs)
    if _on_kernels(config, picked, place.kind, quantization):
        return _on_cpu(
            source, source.formats(picked, quantization), quantization, kv_dtype, progress
        )
    if kv_dtype == "int8":
        raise ValueError(f"kv_dtype {kv_dtype!r} needs the CPU kernels, which cannot run")
    with source.checkpoint.quantised(progress) as tensors:
        int8 = tensors.linear if quantization == W8A8 else no_int8
        if ops is not None and picked != torch.float64 and _on_device(config, ops, picked):
            known = _with_known_mtp(config, partial(unlike, known=ACCELERATORS))
            return PagedDecoder(Stacked(known, ops, picked, place.device, tensors.read, int8))
        where = place.device
        table = source.checkpoint.table
        reader = WeightReader(ops_for(place.kind), picked, where, tensors.read, int8, table)
        return Decoder(Weights(config, reader))


@dataclass(frozen=True, slots=True)
class _Source:
    """A model to load. scheme: of a W8A8 checkpoint. shard: of a GGUF file. method: of another quantised checkpoint."""

    folder: Path
    config: ModelConfig
    checkpoint: Checkpoint
    scheme: Scheme | None
    shard: GgufShard | None
    method: str | None

    @classmethod
    def open(cls, folder: Path, config: ModelConfig) -> _Source:
        checkpoint = Checkpoint.own(folder, config)
        config = config.drafting(heads_there(folder, config, checkpoint))
        others = checkpoint.fused.values()
        method = next((x.reader.label for x in others if isinstance(x, Published)), None)
        shard = GgufShard(folder) if is_gguf(folder) else None
        if shard is not None:
            _tell_drafts(folder, shard, config)
        return cls(folder, config, checkpoint, checkpoint.scheme, shard, method)

    def own_quantization(self, dtype: str | torch.dtype, device: str) -> str:
        """Return the quantization that "auto" stands for."""
        available = device == "cpu" and library.available()
        kernels = available and unsupported(self.config) is None
        if is_gguf(self.folder) or self.checkpoint.packed:
            return OWN if dtype == "auto" and kernels else "none"
        if dtype == "auto" and self.scheme is not None:
            inputs = ", inputs per 32, which is finer than per token" if kernels else ""
            said = "the weights of {} are W8A8 and run so: {}{}"
            logger.info(said, self.folder.name, self.scheme.sentence, inputs)
            return W8A8
        if not (available and dtype == "auto" and is_file(self.folder / BLOCKS)):
            return "none"
        logger.info("the weights of {} are 4-bit and run so (int4)", self.folder.name)
        return "int4"

    def formats(self, dtype: torch.dtype, quantization: str) -> Formats:
        """Return the formats that the kernels pack the weights in."""
        head = EMBEDDING if self.config.tie_word_embeddings else "lm_head.weight"
        if quantization == W8A8 and self.scheme is not None:
            return Formats.w8a8(dtype, self.scheme.kinds, head)
        if quantization != OWN:
            return Formats.of(dtype, quantization)
        if self.shard is None:
            types = {name: Format[form] for name, form in self.checkpoint.packed.items()}
            if self.method is None:
                return Formats.of_file(types, dtype, head)
            near = list(types.values()).count(Format.Q8_0)
            said = "the weights of {} are {} and run so: {} matrices, {} of them rounded to 8 bits once"
            logger.info(said, self.folder.name, self.method, len(types), near)
            return Formats.published(types, dtype, head)
        kinds = self.shard.types()  # of matrices; those that the kernels do not know run as Q8_0
        if others := sorted({kind for kind in kinds.values() if kind not in GGUF_FORMATS}):
            logger.info("matrices of type {} are packed as Q8_0, once", ", ".join(others))
        types = {name: GGUF_FORMATS.get(kind, Format.Q8_0) for name, kind in kinds.items()}
        return Formats.of_file(types, dtype, head)

    def table(self) -> Table | None:
        """Return the per-layer embeddings, in their file where single rows of it can be read; None: there are none."""
        if self.config.per_layer_embedding is None:
            return None
        if (found := self.checkpoint.table(TABLE)) is not None:
            return found
        with self.checkpoint.quantised(False) as tensors:
            return tensors.read(TABLE)

    def storage(self, kv_dtype: str, quantization: str) -> type[KVStorage]:
        """Return the storage of keys and values; ValueError where int8 is asked for and cannot be."""
        misfit = Int8Tiles.misfit(self.config.state_layout)
        if kv_dtype == "int8" and misfit is not None:
            raise ValueError(f"kv_dtype 'int8' needs {misfit}")
        if kv_dtype != "auto":
            return Int8Tiles if kv_dtype == "int8" else TiledStorage
        made_for = quantization == W8A8 and self.scheme is not None and self.scheme.kv
        if not made_for or misfit is not None:
            return TiledStorage
        logger.info("keys and values are kept in int8, as the checkpoint is made for")
        return Int8Tiles

    @contextmanager
    def blocks(self, formats: Formats) -> Iterator[ReadBlocks]:
        """Reads what is packed from blocks, by name."""
        if (shard := self.shard) is not None:
            own = GGUF_FORMATS if formats.types else {"Q4_1": Format.INT4}
            again = bool(formats.types)
            yield lambda name: shard.blocks(name, own, again)
            return
        if formats.layers is not Format.INT4 and not formats.types:
            yield lambda name: None
            return
        packed = self.checkpoint.blocks() if formats.types else None
        with packed or blocks(self.folder, self.config) as read:

            def array(name: str) -> NDArray[np.uint8] | None:
                found = read(name)
                return None if found is None else found.numpy()

            yield array


def heads_there(folder: Path, config: ModelConfig, checkpoint: Checkpoint) -> int:
    """Count the layers for multi-token prediction whose tensors are there, and those before them. Where some are missing,
    a log line says so."""
    heads = () if config.mtp is None else config.mtp.heads
    for n, head in enumerate(heads):
        own = [*mtp_shapes(replace(config, mtp=replace(head, later=())))]
        absent = [name for name in own if name not in checkpoint.names]
        if not absent:
            continue
        if len(absent) < len(own):
            said = "{} has a part of a layer for multi-token prediction, which does not run: tensor {} is missing"
            logger.warning(said, folder, absent[0])
        else:
            said = "{} has {} for multi-token prediction"
            logger.info(said, folder, f"{n} layers of {len(heads)}" if n else "no layer")
        return n
    return len(heads)


def _tell_drafts(path: Path, shard: GgufShard, config: ModelConfig) -> None:
    """Log where a GGUF file's layer for multi-token prediction is, and which tensors beside it are not read."""
    if config.mtp is not None and (beside := drafts_beside(path)) is not None:
        logger.info("the layer for multi-token prediction is read from {}", beside.name)
    known = mtp_shapes(config)
    if others := [name for name in shard.types() if name.startswith("mtp.") and name not in known]:
        said = (
            "{} are not read: drafts are made by one layer, with the model's own embedding and head"
        )
        logger.info(said, ", ".join(others[:9]))


def _on_cpu(
    source: _Source, formats: Formats, quantization: str, kv_dtype: str, progress: bool
) -> CpuDecoder:
    """On the CPU kernels, from a packing that is kept."""
    folder, config = source.folder, _with_known_mtp(source.config, unsupported)
    logger.debug("running {} on the CPU kernels ({})", formats.name, level())
    storage = source.storage(kv_dtype, quantization)
    arena = Arena.of(config, formats)

    def packed_path() -> Path | None:
        return store.packed_path(folder, formats.name, arena)

    path = packed_path()
    memory = store.load(path, arena)
    if memory is None:  # packed on first use
        quantised, packed = source.checkpoint.quantised(progress), source.blocks(formats)
        with quantised as tensors, packed as read:
            at_once = 1 if source.scheme or source.method else PACKERS
            sources = Sources(tensors.read, read, tensors.linear, at_once)
            memory = store.create(path, arena, sources, packed_path)
    model = CpuDecoder(config, formats, arena, memory, storage=storage, table=source.table())
    if config.mtp is not None:
        heads = range(len(config.mtp.heads))
        each = (MtpKernels(config, formats, arena, memory, storage, head) for head in heads)
        model.mtp = CpuMtp([*each])
    return model


def _with_known_mtp(
    config: ModelConfig, unknown: Callable[[ModelConfig], str | None]
) -> ModelConfig:
    """The config, without its MTP layer where kernels do not know that one; then a log line says why. unknown: what
    they do not know in a model."""
    if config.mtp is None:
        return config
    why = unknown(config.with_mtp)
    if any(head.norms != config.norm for head in config.mtp.heads):
        why = "they have one norm for all places"
    if why is None:
        return config
    logger.warning("the kernels do not run the layer for multi-token prediction: {}", why)
    return replace(config, mtp=None)


def _on_kernels(config: ModelConfig, dtype: torch.dtype, device: str, quantization: str) -> bool:
    """Tell whether the CPU kernels run this; ValueError for a quantization that nothing runs."""
    if quantization not in ("none", OWN, W8A8):
        if quantization not in QUANTIZATIONS:
            known = ", ".join(("auto", "none", *QUANTIZATIONS, W8A8))
            raise ValueError(f"quantization {quantization!r} is not one of {known}")
        if device != "cpu":
            raise ValueError(f"quantization {quantization!r} runs on the CPU only, not {device}")
        if not library.available():
            missing = "which are not available on this machine; the log says why"
            raise ValueError(f"quantization {quantization!r} needs the CPU kernels, {missing}")
    reason = unsupported(config)
    if quantization not in ("none", OWN, W8A8) and reason is not None:
        raise ValueError(f"quantization {quantization!r} needs the CPU kernels, but {reason}")
    if device != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    if reason is not None:
        logger.warning("plain torch runs instead of the CPU kernels: {}", reason)
        return False
    return library.available()


def _on_device(config: ModelConfig, ops: PagedOps, dtype: torch.dtype) -> bool:
    """Tell whether an accelerator's kernels know the layers; else plain torch runs, and says so. ValueError where they
    know them, but not their sizes, and no layer is recurrent."""
    why = unlike(config, ACCELERATORS)
    if why is None and config.state_layout.running:
        try:  # the heads of most such models are wider than an NPU's kernels take
            ops.check(config, dtype)
        except ValueError as error:
            why = str(error)
    if why is not None:
        logger.warning("plain torch runs instead of the device's kernels: {}", why)
    return why is None


def pick_dtype(
    dtype: str | torch.dtype, config: ModelConfig, place: DeviceChoice, ops: PagedOps | None = None
) -> torch.dtype:
    """The dtype to run in. A checkpoint that names none runs in float32.

    When dtype is "auto", float16 becomes bfloat16 on the CPU, whose float16 products are slow, and
    what an NPU does not run becomes what it does.
    """
    name = str(dtype).removeprefix("torch.")
    own = (config.dtype or "float32") if name == "auto" else name
    if own not in DTYPES:
        raise ValueError(f"dtype {shown(own)} is not one of auto, {', '.join(DTYPES)}")
    if name != "auto":
        return DTYPES[own]
    if own == "float16" and place.kind == "cpu":
        said = "the checkpoint is float16: activations, keys and values are bfloat16 on the CPU"
        logger.info(said)
        return torch.bfloat16
    runs = DTYPES[own] if ops is None else ops.nearest(DTYPES[own])
    if runs != DTYPES[own]:
        logger.info("the checkpoint is {}, which runs as {} on this device", own, runs)
    return runs
