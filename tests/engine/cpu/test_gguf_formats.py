"""GGUF's types on the CPU kernels: the file's own numbers, and rows that are blind to other rows."""

from pathlib import Path

import checkpoints
import gguf_rows
import numpy as np
import pytest
import texts
import torch
from gguf_rows import TYPES, Array, product
from kernel_tools import compiled
from refusals import refused

from fastslow.engine.backends.cpu import library, store
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import EMBEDDING, GGUF_FORMATS, Format, Formats, MatrixRuns, Sources
from fastslow.engine.backends.cpu.packed import Arena
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import no_int8

pytestmark = compiled
BLOCK = 32
UNIT = 2.0**-23  # a float32 sum of K products is within a few K of these of their sizes


def sizes(name: str) -> list[tuple[int, int]]:
    step = gguf_rows.block_inputs(name)
    wide = [(64, 2880)] if step == BLOCK else []
    return [(1, step), (40, 3 * step), (33, 2 * step), (70, 1280), *wide]


@pytest.mark.parametrize("name", TYPES)
def test_a_tile_means_what_the_file_says_bit_for_bit(name: str) -> None:
    """All bit patterns, scales from the smallest to the largest; rows past the last are zeros."""
    for seed, (outputs, inputs) in enumerate(sizes(name)):
        blocks = gguf_rows.rows(name, outputs, inputs, seed)
        tiles = gguf_rows.packed(name, blocks, inputs)
        found = library.unpack(tiles, GGUF_FORMATS[name], -(-outputs // library.TILE) * library.TILE, inputs)
        want = gguf_rows.floats(name, blocks)
        assert not np.isnan(want).any() and (found[:outputs].view(np.int32) == want.view(np.int32)).all()
        assert not found[outputs:].any()


@pytest.mark.parametrize("name", TYPES)
def test_rows_are_picked_from_several_parts(name: str) -> None:
    inputs = 2 * gguf_rows.block_inputs(name)
    parts = [gguf_rows.rows(name, count, inputs, count) for count in (20, 30)]
    order = np.random.default_rng(0).permutation(np.r_[np.arange(50), np.full(14, -1)])
    tiles = gguf_rows.packed(name, np.zeros((64, parts[0].shape[1]), np.uint8), inputs)
    library.pack_gguf(tiles, GGUF_FORMATS[name], parts, order, inputs)
    whole = gguf_rows.floats(name, np.concatenate(parts))
    want = np.where(order[:, None] < 0, 0, whole[order])
    assert (library.unpack(tiles, GGUF_FORMATS[name], 64, inputs) == want).all()


@pytest.mark.parametrize("name", TYPES)
def test_products_are_those_of_the_numbers(name: str) -> None:
    """Inputs that int8 holds exactly: all that is left is the rounding of float32 sums."""
    random = np.random.default_rng(3)
    for outputs, inputs in sizes(name):
        blocks = gguf_rows.like_weights(name, outputs, inputs)
        x = random.integers(-127, 128, (13, inputs)).astype(np.float32)
        x[:2] = [[127], [-127]]  # the largest factors meet
        x[:, ::BLOCK] = 127
        powers = 2.0 ** random.integers(-9, 9, (13, inputs // BLOCK, 1))
        x = (x.reshape(13, -1, BLOCK) * powers).reshape(13, -1)
        out = product(GGUF_FORMATS[name], gguf_rows.packed(name, blocks, inputs), outputs, x)
        weights = gguf_rows.floats(name, blocks).T.astype(np.float64)
        # before minima are taken off, sums are larger than their products
        most = np.abs(x).sum(1, keepdims=True) * np.abs(weights).max()
        bound = 8 * UNIT * (np.abs(x) @ np.abs(weights) + most)
        assert (np.abs(out - x @ weights) <= bound).all()


def test_q4_1_and_int4_are_the_same_products() -> None:
    """A 4-bit file makes the tokens that its blocks made as an int4 model."""
    blocks = gguf_rows.like_weights("Q4_1", 64, 96)
    tiles = gguf_rows.packed("Q4_1", blocks, 96)
    x = np.random.default_rng(1).standard_normal((9, 96)).astype(np.float32)
    found = product(Format.Q4_1, tiles, 64, x)
    library.pack_gguf(tiles, Format.INT4, [blocks], np.arange(64), 96)
    out = product(Format.INT4, tiles, 64, x)
    assert (found.view(np.int32) == out.view(np.int32)).all()


def test_what_is_no_row_of_blocks_is_refused() -> None:
    blocks = gguf_rows.rows("Q4_K", 40, 512)
    tiles = gguf_rows.packed("Q4_K", blocks, 512)
    order = np.arange(32)
    for wrong, sentence in [
        ((Format.Q4_K, [blocks], order, 500), "inputs=500 must be a multiple of 256"),
        ((Format.Q4_K, [blocks], order, 256), "rows of blocks must be 5760 of uint8, not 11520"),
        ((Format.Q4_K, [blocks], order + 9, 512), "32 rows to pack are not whole tiles of 40 rows"),
        ((Format.Q4_K, [blocks], order[:5], 512), "5 rows to pack are not whole tiles"),
        ((Format.INT8, [blocks], order, 512), "format 2 has no blocks"),
    ]:
        refused(sentence, library.pack_gguf, tiles, *wrong)
    refused("format 8 has numbers of a file's only", library.pack, tiles, Format.Q4_K, np.zeros((32, 512), np.float32))


# Types of a layer's q, k, v, o, gate, up and down, and of the head or the embedding.
MIXTURES = {
    "Q4_K_M": ("Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"),
    "all unlike": ("Q4_1", "Q5_0", "MXFP4", "Q5_K", "Q4_0", "Q4_0", "F16", "Q4_K"),
    "in floats": ("Q4_1", "F16", "BF16", "F32", "Q4_K", "Q5_K", "Q8_0", "F16"),
}
PARTS = [*(f"self_attn.{name}" for name in "qkvo"), "mlp.gate", "mlp.up", "mlp.down"]


class Made:
    """A checkpoint whose matrices are what blocks mean, and the decoder that runs the blocks."""

    def __init__(self, folder: Path, mixture: str, tied: bool) -> None:
        size = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 40, "vocab_size": 96}
        config = {**checkpoints.DENSE, **size, "attention_bias": True, "tie_word_embeddings": tied}
        config |= {"num_attention_heads": 32, "num_key_value_heads": 8}
        table = checkpoints.tensors(config)
        *inner, last = MIXTURES[mixture]
        self.names = {f"model.layers.{n}.{part}_proj.weight": name for n in (0, 1) for part, name in zip(PARTS, inner)}
        self.names[EMBEDDING] = last
        if not tied:
            self.names["lm_head.weight"] = last
        self.blocks: dict[str, Array] = {}
        for seed, (key, name) in enumerate(self.names.items()):
            if name in TYPES:
                outputs, inputs = table[key].shape
                self.blocks[key] = gguf_rows.like_weights(name, outputs, inputs, seed)
                table[key] = torch.from_numpy(gguf_rows.floats(name, self.blocks[key]))
            else:
                dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[name]
                table[key] = table[key].to(dtype).float()
        self.folder = checkpoints.write(folder, config, table)
        self.head = EMBEDDING if tied else "lm_head.weight"

    def decoder(self) -> CpuDecoder:
        config = ModelConfig.from_folder(self.folder)
        types = {key: GGUF_FORMATS[name] for key, name in self.names.items()}
        formats = Formats.of_file(types, torch.float32, self.head)
        arena = Arena.of(config, formats)
        with Checkpoint.open(self.folder, config, None).quantised(False) as tensors:
            sources = Sources(tensors.read, self.blocks.get, no_int8)
            return CpuDecoder(config, formats, arena, store.create(None, arena, sources))


@pytest.mark.parametrize(("mixture", "tied"), list(zip(MIXTURES, (True, False, True))))
def test_a_mixture_of_types_runs_as_its_numbers_do(tmp_path: Path, mixture: str, tied: bool) -> None:
    made = Made(tmp_path, mixture, tied)
    decoder = made.decoder()
    assert isinstance(decoder._arena.pieces["0.qkv"], MatrixRuns)
    tokens = texts.tokens_of(40)
    found = texts.logits(decoder, tokens)
    want = texts.logits(load_model(made.folder, "float32"), tokens)
    error = (found - want).std() / want.std()
    assert error < 0.03  # what activations in int8 lose
    # a row on its own, in threes, and as one of many
    assert torch.equal(found, texts.logits(decoder, tokens, [1] * 20 + [3] * 4 + [8]))
    assert torch.equal(found, texts.logits(decoder, tokens, [40 - 17, 17]))


def test_a_file_keeps_one_copy_of_a_tied_embedding(tmp_path: Path) -> None:
    """Its rows are read from the head's tiles, and are the file's own numbers."""
    arena = Made(tmp_path, "Q4_K_M", tied=True).decoder()._arena
    assert "embedding" not in arena.pieces and "screen" not in arena.pieces
    assert arena.pieces["head"].nbytes == 96 * 210
