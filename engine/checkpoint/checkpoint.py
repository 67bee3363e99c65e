"""The safetensors files of a folder, or a GGUF file, checked against a config before any weight is read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, Progress
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastslow.engine.checkpoint.fused import Expected, Fact, Facts, Fused, Slices, fused_tensors
from fastslow.engine.checkpoint.gguf_shard import GgufShard, GgufSlice
from fastslow.engine.checkpoint.published.layout import Published, published_layouts
from fastslow.engine.checkpoint.quantised import (
    QuantReader,
    Scheme,
    expected_tensors,
    quantised_tensors,
)
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.checkpoint.shards import INDEX, shards_of
from fastslow.engine.host.files import is_file, no_panic, open_file, shown
from fastslow.engine.host.gguf_file import is_gguf
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import QuantLinear, Read
from fastslow.engine.model.tensors import TOKEN_ORDER, canonical, mtp_shapes, tensor_shapes

BLOCKS = "q4_1.blocks"  # safetensors beside the weights: the 4-bit blocks they were made from
DRAFT_LAYER = re.compile(r"model\.layers\.(\d+)\.")  # copies of embedding and head lie there
BLOCK_INPUTS, BLOCK_BYTES = 32, 20  # scale and minimum in float16, then two inputs a byte
MOST_HEADER = 100_000_000  # bytes, as the library has it
LAST_BYTE = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,18})\s*\]')
PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ENTRY = 64  # bytes that a tensor takes in a file's header, and more
# Old exports carry frequencies along, which we compute; and ranges of keys and values, which need none here.
CONSTANT = re.compile(r".*\.rotary_emb\.inv_freq|.*\.self_attn\.[kv]_(scale|proj\.output_scale)")


Layout = Fused | Published


class ReadPart(Protocol):
    """Gives a tensor by name, or a slice of each of its axes."""

    def __call__(self, name: str, part: tuple[slice, ...] | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors that the config asks for, by the file that holds them."""

    files: dict[Path, list[str]]
    scheme: Scheme | None = None
    stored: dict[str, str] = field(default_factory=dict)  # name -> its spelling in the file
    fused: dict[str, Layout] = field(default_factory=dict)  # by names of tensors that lie in others

    @classmethod
    def open(cls, folder: Path, config: ModelConfig, scheme: Scheme | None = None) -> Checkpoint:
        """Check the name, shape and dtype of every tensor. ValueError in one sentence. scheme: what is quantised."""
        shards = shards_of(folder)
        _check_count(folder, config, shards)
        if scheme is not None:
            scheme = scheme.renamed(lambda name: canonical(name, config))
        expected = expected_tensors(
            config, scheme and scheme.only(lambda n: not _in_mtp_layer(n, config))
        )
        if config.assists is not None and config.assists.clusters:
            expected[TOKEN_ORDER] = Expected(((config.vocab_size,),), ("I64", "I32"))
        shapes = mtp_shapes(config)
        drafts = {name: Expected((shape,)) for name, shape in shapes.items()}
        drafts |= quantised_tensors(shapes, scheme and scheme.only(shapes.__contains__))
        facts, stored, holders = _facts(shards, config)
        layouts: list[Layout] = [*fused_tensors(config)]
        if not is_gguf(folder):
            layouts += published_layouts(folder, config, facts)
        inside = _inside_others(folder, layouts, facts)
        known = expected | drafts | {n: x for fused in layouts for n, x in fused.tensors.items()}
        files: dict[Path, list[str]] = {}
        if left_out := sum(name.startswith(config.left_out) for name in holders):
            logger.info("{}: text alone runs, and {} other tensors do not", folder, left_out)
        if config.mtp is not None:
            base, _, number = config.mtp.heads[-1].prefix.rpartition(".")
            if any(name.startswith(f"{base}.{int(number) + 1}.") for name in holders):
                said = "{} has more MTP layers than config.json says, {}: the last of these drafts all further tokens"
                logger.info(said, folder, len(config.mtp.heads))
        for name, path in holders.items():
            if name in known:
                _check(path, stored.get(name, name), facts[name], known[name])
                files.setdefault(path, []).append(name)
            elif not _ignorable(name, config):
                raise ValueError(
                    f"{path} has an unexpected tensor {name:.99}, which "
                    f"{config.architecture} does not use"
                )
        there = holders.keys() | inside.keys()
        if missing := [n for n, x in expected.items() if n not in there and not x.optional]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            holding = () if is_gguf(folder) else (x for x in layouts if missing[0] in x.parts)
            name = next((next(iter(x.tensors)) for x in holding), missing[0])
            shape = list(known[name].shape)
            raise ValueError(f"{folder} lacks tensor {name} of shape {shape}{more}")
        return cls(files, scheme, stored, inside)

    @classmethod
    def own(cls, folder: Path, config: ModelConfig) -> Checkpoint:
        """`open` with what the folder says of its quantisation."""
        return cls.open(folder, config, Scheme.from_folder(folder))

    @property
    def names(self) -> set[str]:
        """The tensors that are there, those inside others, too."""
        return {name for names in self.files.values() for name in names} | self.fused.keys()

    @contextmanager
    def reader(self, progress: bool, total: int | None = None) -> Iterator[ReadPart]:
        """A function that reads a tensor by name, or a part of it, from memory-mapped files that stay open.

        progress: draw a bar on standard error where that is a terminal. total: reads; None = all tensors."""
        with self._open_files() as shards, _bar(progress, total or len(shards)) as advance:

            def read(name: str, part: tuple[slice, ...] | None = None) -> Tensor:
                advance()
                if name in self.fused:
                    whole = self.fused[name].read(name, self._slices(shards))
                    return whole if part is None else whole[part]
                spelled = self.stored.get(name, name)
                tensor: Tensor = (
                    shards[name].get_tensor(spelled)
                    if part is None
                    else shards[name].get_slice(spelled)[part]
                )
                return _finite(name, tensor)

            yield read

    @property
    def packed(self) -> dict[str, str]:
        """The kernel format of each matrix whose numbers one holds, exactly or nearly."""
        return {name: x.form for name, x in self.fused.items() if x.form is not None}

    @contextmanager
    def blocks(self) -> Iterator[Callable[[str], Tensor | None]]:
        """A function that reads a matrix as rows of its format's blocks, uint8 [outputs, bytes], or None."""
        with self._open_files() as shards:

            def rows(name: str) -> Tensor | None:
                found = self.fused.get(name)
                if found is None or found.form is None:
                    return None
                return found.read_packed(name, self._slices(shards))

            yield rows

    def _slices(self, shards: Mapping[str, Any]) -> Slices:
        return lambda name: shards[name].get_slice(self.stored.get(name, name))

    def table(self, name: str) -> RowFile | GgufSlice | None:
        """A matrix whose rows are read by number, i64 [n], in the memory of its file; None where they cannot be."""
        path = next((path for path, names in self.files.items() if name in names), None)
        if path is not None and is_gguf(path):
            return GgufShard(path).get_slice(name)
        return self.rows(name)

    def rows(self, name: str) -> RowFile | None:
        """A matrix to read single rows of; None where they cannot be read so (see `RowFile`)."""
        path = next((path for path, names in self.files.items() if name in names), None)
        if path is None or name in self.fused or is_gguf(path):
            return None
        return RowFile.of_tensor(path, self.stored.get(name, name))

    @contextmanager
    def _open_files(self) -> Iterator[dict[str, Any]]:
        with ExitStack() as stack:
            yield {
                name: shard
                for path, names in self.files.items()
                for shard in [stack.enter_context(open_shard(path))]
                for name in names
            }

    @contextmanager
    def quantised(self, progress: bool) -> Iterator[QuantReader]:
        """The same, for tensors that may be in int8."""
        held, scheme = self.names, self.scheme or Scheme({})
        with self.reader(progress) as read, self._open_files() as shards:

            def own(name: str) -> QuantLinear | None:
                layout, slices = self.fused.get(name), self._slices(shards)
                return layout.linear(slices) if isinstance(layout, Published) else None

            yield QuantReader(lambda n: read(n) if n in held else None, scheme, own)


@contextmanager
def blocks(folder: Path, config: ModelConfig) -> Iterator[Callable[[str], Tensor | None]]:
    """A function that reads the 4-bit blocks of a matrix, uint8 [outputs, inputs / 32 * 20]; None where the
    folder has none of it. Every name, shape and dtype is checked before. ValueError in one sentence."""
    path = folder / BLOCKS
    if not is_file(path):
        yield lambda name: None
        return
    shapes = {
        name: shape
        for name, shape in tensor_shapes(config).items()
        if name.endswith("_proj.weight") and not shape[-1] % BLOCK_INPUTS
    }
    with open_shard(path) as file:
        names = set(file.keys())
        for name in sorted(names):
            if name not in shapes:
                raise ValueError(
                    f"{path} has an unexpected tensor {name:.99}: it holds matrices of layers alone, "
                    f"with inputs in blocks of {BLOCK_INPUTS}"
                )
            outputs, inputs = shapes[name]
            shape = (outputs, inputs // BLOCK_INPUTS * BLOCK_BYTES)
            _check(path, name, Fact.of(file.get_slice(name)), Expected((shape,), ("U8",)))
        yield lambda name: file.get_tensor(name) if name in names else None


@contextmanager
def floats(folder: Path, config: ModelConfig, progress: bool = False) -> Iterator[Read]:
    """A function that reads any tensor of a folder, multiplied out where it is quantised."""
    with Checkpoint.own(folder, config).quantised(progress) as tensors:
        yield tensors.read


def _facts(
    shards: Mapping[Path, set[str] | None], config: ModelConfig
) -> tuple[dict[str, Fact], dict[str, str], dict[str, Path]]:
    """Return what the files say of their tensors, by the engine's names; how they spell the others; each one's file."""
    facts: dict[str, Fact] = {}
    stored: dict[str, str] = {}
    holders: dict[str, Path] = {}
    for path, listed in shards.items():
        with open_shard(path) as shard:
            names = set(shard.keys())
            if listed is not None and (absent := sorted(listed - names)):
                raise ValueError(f"{path} lacks tensor {absent[0]:.99}, which {INDEX} puts there")
            for spelled in sorted(names):
                name = canonical(spelled, config)
                if name != spelled:
                    stored[name] = spelled
                if name in holders:
                    raise ValueError(f"tensor {name:.99} is in both {holders[name]} and {path}")
                holders[name], facts[name] = path, Fact.of(shard.get_slice(spelled))
    return facts, stored, holders


def _inside_others(folder: Path, layouts: Iterable[Layout], facts: Facts) -> dict[str, Layout]:
    """The model's tensors that lie in others of the files; ValueError where a part is missing or there twice."""
    found: dict[str, Layout] = {}
    for layout in layouts:
        there = [name for name in layout.tensors if name in facts]
        if not there:
            continue
        if absent := [n for n, x in layout.tensors.items() if n not in facts and not x.optional]:
            raise ValueError(f"{folder} has tensor {there[0]}, but lacks {absent[0]}")
        apart = (name for name in layout.parts if name not in layout.tensors)
        if twice := [name for name in apart if name in facts or name in found]:
            raise ValueError(f"{folder} has tensor {twice[0]} twice: {there[0]} holds it, too")
        found |= dict.fromkeys(layout.parts, layout)
    return found


@contextmanager
def _bar(progress: bool, total: int) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    columns = ("loading weights", BarColumn(), "{task.completed}/{task.total}")
    hidden = not (progress and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def _finite(name: str, tensor: Tensor) -> Tensor:
    """The same; ValueError where some number of a float tensor is not finite."""
    if tensor.dtype in PLAIN and tensor.numel():
        low, high = torch.aminmax(tensor)
        if not -math.inf < low.item() <= high.item() < math.inf:
            raise ValueError(f"tensor {name} has numbers that are not finite")
    return tensor


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A file of tensors: safetensors, or a GGUF file under the usual names."""
    if path.suffix == ".gguf":
        yield GgufShard(path)
        return
    try:
        with no_panic(f"{path} cannot be read"), safe_open(path, framework="pt") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no sound safetensors file: {error!s:.99}") from None


def _check(path: Path, name: str, found: Fact, expected: Expected) -> None:
    if found.dtype not in expected.dtypes:
        raise ValueError(
            f"{path}: tensor {name} is of dtype {found.dtype}, which is not one of "
            f"{', '.join(expected.dtypes)}"
        )
    if found.shape not in expected.shapes:
        raise ValueError(
            f"{path}: tensor {name} has shape {shown(list(found.shape))}, but "
            f"{'its header' if path.suffix == '.gguf' else 'config.json'} asks for {list(expected.shape)}"
        )


def _check_count(folder: Path, config: ModelConfig, shards: Iterable[Path]) -> None:
    """A config may ask for more tensors than the files' headers have room for: names could fill the memory."""
    alone = not any("experts" in kind for kind in config.fused)  # else they may lie in one tensor
    routed = [layer.routed.experts for layer in config.layers if layer.routed] if alone else []
    count = len(config.layers)
    least = count + 3 * sum(routed)
    room = sum(map(_room, shards))
    if least > room:
        experts = f" and num_experts {max(routed)}" if routed else ""
        raise ValueError(
            f"{folder / 'config.json'}: num_hidden_layers {count}{experts} ask for at least "
            f"{least} tensors, but the files of weights have room for the names of {room} only"
        )


def _room(path: Path) -> int:
    return len(GgufShard(path).keys()) if is_gguf(path) else _header_bytes(path) // ENTRY


def _header_bytes(path: Path) -> int:
    """ValueError where the file ends before what its header speaks of, as one does that came in part."""
    try:
        with open_file(path) as file:
            said, size = int.from_bytes(file.read(8), "little"), file.seek(0, os.SEEK_END)
            file.seek(8)
            needs = 8 + said
            if needs <= size and said <= MOST_HEADER:
                ends = [int(end) for end in LAST_BYTE.findall(file.read(said))]
                needs += max(ends, default=0)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if needs > size:
        raise ValueError(f"{path} is cut: it has {size} bytes of {needs}; fetch or write it again")
    return said


def _ignorable(name: str, config: ModelConfig) -> bool:
    tied = name.startswith("lm_head.weight") and config.tie_word_embeddings
    drafts = name.startswith("mtp.") or _in_mtp_layer(name, config)
    beside = name.startswith(config.left_out)
    return tied or drafts or beside or CONSTANT.fullmatch(name) is not None


def _in_mtp_layer(name: str, config: ModelConfig) -> bool:
    layer = DRAFT_LAYER.match(name) if config.drafts_inside else None
    return layer is not None and int(layer[1]) >= len(config.layers)
