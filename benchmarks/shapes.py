"""GGUF files of real shapes with random weights, for measuring sizes that people run without downloading any.

    python benchmarks/shapes.py --list
    python benchmarks/shapes.py llama-1.2b --type q4_k_m --out llama-1.2b.gguf
    python benchmarks/shapes.py qwen3-30b-a3b --type q4_k_m --layers 4 --out short.gguf

The tensors have the shapes, names and types of a published model's file, so every engine does the work that it would
do for that model. The numbers are random with the spread of a fresh model, so the text means nothing. `q4_k_m` is
llama.cpp's mixture of Q4_K and Q6_K. The vocabulary has the published size: 256 bytes and filled-in names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, quant_shape_to_byte_shape
from numpy.typing import NDArray

from fastslow.engine.host.progress import bar

Bytes = NDArray[np.uint8]
SPREAD = 0.02  # of a weight, as models are made
PIECE = 1 << 16  # blocks that are made at once


@dataclass(frozen=True)
class Shape:
    """A published model's. `experts`: (how many, chosen per token, width), where it is a mixture."""

    arch: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool
    theta: float
    context: int
    experts: tuple[int, int, int] | None = None


SHAPES = {
    "llama-1.2b": Shape("llama", 2048, 16, 32, 8, 64, 8192, 128256, True, 5e5, 131072),
    "qwen3-1.7b": Shape("qwen3", 2048, 28, 16, 8, 128, 6144, 151936, True, 1e6, 40960),
    "qwen3-4b": Shape("qwen3", 2560, 36, 32, 8, 128, 9728, 151936, True, 1e6, 40960),
    "qwen3-8b": Shape("qwen3", 4096, 36, 32, 8, 128, 12288, 151936, False, 1e6, 40960),
    "qwen3-30b-a3b": Shape(
        "qwen3moe", 2048, 48, 32, 4, 128, 6144, 151936, False, 1e6, 40960, (128, 8, 768)
    ),
}  # fmt: skip
PURE = {
    "q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0, "q4_1": Kind.Q4_1, "q5_0": Kind.Q5_0, "q4_k": Kind.Q4_K,
    "q5_k": Kind.Q5_K, "q6_k": Kind.Q6_K, "mxfp4": Kind.MXFP4, "f16": Kind.F16, "bf16": Kind.BF16,
}  # fmt: skip
MIXED = "q4_k_m"
# The standard deviation of a block's whole numbers, uniform over all of them.
WIDTH = {4: 4.61, 5: 9.23, 6: 18.47, 8: 73.9}


def kind_of(name: str, wanted: str, layer: int, layers: int) -> Kind:
    """The type of a matrix; `q4_k_m` gives more bits to some, as llama.cpp does."""
    if wanted != MIXED:
        return PURE[wanted]
    if name in ("output", "token_embd"):
        return Kind.Q6_K
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return Kind.Q6_K if more and name in ("attn_v", "ffn_down", "ffn_down_exps") else Kind.Q4_K


def tensors(shape: Shape, wanted: str) -> Iterator[tuple[str, tuple[int, ...], Kind]]:
    """Every tensor's name, shape and type."""
    s, last = shape, shape.layers

    def matrix(name: str, layer: int, *sizes: int) -> tuple[str, tuple[int, ...], Kind]:
        prefix = "" if layer < 0 else f"blk.{layer}."
        return f"{prefix}{name}.weight", sizes, kind_of(name, wanted, layer, last)

    yield matrix("token_embd", -1, s.vocabulary, s.hidden)
    for n in range(s.layers):
        yield f"blk.{n}.attn_norm.weight", (s.hidden,), Kind.F32
        yield matrix("attn_q", n, s.heads * s.head_dim, s.hidden)
        yield matrix("attn_k", n, s.kv_heads * s.head_dim, s.hidden)
        yield matrix("attn_v", n, s.kv_heads * s.head_dim, s.hidden)
        if s.arch.startswith("qwen3"):
            yield f"blk.{n}.attn_q_norm.weight", (s.head_dim,), Kind.F32
            yield f"blk.{n}.attn_k_norm.weight", (s.head_dim,), Kind.F32
        yield matrix("attn_output", n, s.hidden, s.heads * s.head_dim)
        yield f"blk.{n}.ffn_norm.weight", (s.hidden,), Kind.F32
        if s.experts is None:
            yield matrix("ffn_gate", n, s.inner, s.hidden)
            yield matrix("ffn_up", n, s.inner, s.hidden)
            yield matrix("ffn_down", n, s.hidden, s.inner)
            continue
        count, _, inner = s.experts
        yield f"blk.{n}.ffn_gate_inp.weight", (count, s.hidden), Kind.F32
        yield matrix("ffn_gate_exps", n, count, inner, s.hidden)
        yield matrix("ffn_up_exps", n, count, inner, s.hidden)
        yield matrix("ffn_down_exps", n, count, s.hidden, inner)
    yield "output_norm.weight", (s.hidden,), Kind.F32
    if not s.tied:
        yield matrix("output", -1, s.vocabulary, s.hidden)


def random_blocks(kind: Kind, count: int, random: np.random.Generator) -> Bytes:
    """uint8 [count, bytes of a block]: any whole numbers, and scales that give weights their spread."""
    size = quant_shape_to_byte_shape((256 if kind.name.endswith("_K") else 32,), kind)[0]
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    factor = random.uniform(0.7, 1.3, (count, 1))

    def scale(at: int, bits: int, of: float = 1.0, by: float = 1.0) -> None:
        """Float16 at a byte: a weight's spread over that of the whole numbers, times `by`."""
        value = by * SPREAD / (WIDTH[bits] * of) * factor
        blocks[:, at : at + 2] = value.astype("<f2").view(np.uint8)

    if kind in (Kind.Q4_0, Kind.Q5_0, Kind.Q8_0):
        scale(0, {Kind.Q4_0: 4, Kind.Q5_0: 5, Kind.Q8_0: 8}[kind])
    elif kind == Kind.Q4_1:
        scale(0, 4)
        scale(2, 4, by=-7.5)
    elif kind in (Kind.Q4_K, Kind.Q5_K):
        bits = 4 if kind == Kind.Q4_K else 5
        # every block of 32 has one number for its scale and its minimum, so that weights are around 0
        blocks[:, 8:12] = blocks[:, 4:8]
        blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17
        scale(0, bits, of=32)
        scale(2, bits, of=32, by=(2**bits - 1) / 2)
    elif kind == Kind.Q6_K:
        blocks[:, 192:208] = random.integers(20, 44, (count, 16), dtype=np.uint8)
        scale(208, 6, of=32)
    elif kind == Kind.MXFP4:
        blocks[:, 0] = random.integers(119, 122, count, dtype=np.uint8)
    return blocks


def random_tensor(
    name: str, sizes: tuple[int, ...], kind: Kind, random: np.random.Generator
) -> NDArray[np.generic]:
    """The numbers of a tensor, as the file holds them."""
    if kind in (Kind.F32, Kind.F16, Kind.BF16):
        values = random.standard_normal(sizes, dtype=np.float32) * np.float32(SPREAD)
        if "norm" in name:
            values = values + np.float32(1)
        if kind == Kind.BF16:
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype(np.float16 if kind == Kind.F16 else np.float32)
    row = quant_shape_to_byte_shape(sizes, kind)
    whole = np.empty(row, dtype=np.uint8)
    per_block = random_blocks(kind, 1, random).shape[1]
    blocks = whole.reshape(-1, per_block)
    for first in range(0, len(blocks), PIECE):
        some = blocks[first : first + PIECE]
        some[:] = random_blocks(kind, len(some), random)
    return whole


def add_tokens(writer: GGUFWriter, shape: Shape) -> None:
    """A byte-level vocabulary of the published size, with one merge so that readers find some."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    names = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    merged, filled = names[104] + names[105], range(257, shape.vocabulary - 1)
    tokens = [*names, merged, *(f"<{n}>" for n in filled), "<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if shape.arch == "llama" else "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges([f"{names[104]} {names[105]}"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def write(shape: Shape, wanted: str, out: Path, seed: int) -> None:
    """Write the file, a tensor at a time."""
    s, random = shape, np.random.default_rng(seed)
    writer = GGUFWriter(out, s.arch)
    writer.add_name(out.stem)
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.hidden)
    writer.add_block_count(s.layers)
    writer.add_feed_forward_length(s.inner)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.head_dim)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_rope_freq_base(s.theta)
    writer.add_layer_norm_rms_eps(1e-6)
    if s.experts is not None:
        count, chosen, inner = s.experts
        writer.add_expert_count(count)
        writer.add_expert_used_count(chosen)
        writer.add_expert_feed_forward_length(inner)
    add_tokens(writer, s)
    every = list(tensors(s, wanted))
    for name, sizes, kind in every:
        plain = {Kind.F32: np.float32, Kind.F16: np.float16}.get(kind)
        row = sizes if plain else quant_shape_to_byte_shape(sizes, kind)
        dtype = np.dtype(plain or np.uint8)
        writer.add_tensor_info(name, row, dtype, int(np.prod(row)) * dtype.itemsize, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, sizes, kind in bar(every, f"writing {out.name}"):
        writer.write_tensor_data(random_tensor(name, sizes, kind, random))
    writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", nargs="?", choices=SHAPES, metavar="SHAPE")
    parser.add_argument("--list", action="store_true", help="print the shapes and types, and stop")
    parser.add_argument("--type", default=MIXED, choices=(MIXED, *PURE), help=f"default: {MIXED}")
    parser.add_argument("--out", type=Path, help="the file; default: SHAPE-TYPE.gguf")
    parser.add_argument(
        "--layers", type=int, help="fewer than the published ones, for a quick look"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.list or args.shape is None:
        for name, shape in SHAPES.items():
            print(f"{name}: {shape}")
        print(f"types: {', '.join((MIXED, *PURE))}")
        return 0
    shape = SHAPES[args.shape]
    if args.layers is not None:
        if not 1 <= args.layers <= shape.layers:
            parser.error(f"--layers {args.layers} must be from 1 to {shape.layers}")
        shape = Shape(**{**vars(shape), "layers": args.layers})
    out = args.out or Path(f"{args.shape}-{args.type}.gguf")
    write(shape, args.type, out, args.seed)
    print(f"{out}: {out.stat().st_size / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
