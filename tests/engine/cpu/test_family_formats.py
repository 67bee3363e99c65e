"""Every newer family in every number format of the kernels: its answers are those of plain decoding."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import family_files as files
import gemma_models
import gguf
import gguf_rows
import peer_models as peers
import pytest
import texts
from gguf import GGMLQuantizationType as Kind
from gguf_gemma import write_gemma
from gguf_openpangu import write_openpangu
from gguf_writer import matrices
from kernel_tools import compiled
from layer_fuzz import LayerFuzz
from pangu_2_reference import Pangu2

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Format, PackedMatrix
from fastslow.engine.backends.cpu.pieces.layers import pieces
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import Model

pytestmark = compiled
FORMS = ("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8"), ("bfloat16", "int4")
TYPES = *gguf_rows.TYPES, "F16", "BF16"
SHAPES = [*peers.NEAR, *peers.MIXTURES, *gemma_models.SHAPES, "openpangu"]
GEMMAS = "gemma3 stretched", "gemma4", "gemma4 mixture"
FILES = [*files.NEAR, *files.MIXTURES, *GEMMAS, "openpangu"]
QUICK = (
    ("openpangu", "Q4_K"),
    ("latent older", "Q4_K"),
    ("Olmo3", "Q6_K"),
    ("gemma4 mixture", "Q4_0"),
    ("minimax", "Q5_K"),
)


@pytest.fixture(autouse=True)
def every_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random blocks where the library writes none of a type."""
    whole, made = gguf.quants.quantize, list[int]()

    def quantize(x: Any, kind: Kind) -> Any:
        try:
            return whole(x, kind)
        except NotImplementedError:
            made.append(x.size)
            count = x.size // x.shape[-1]
            return gguf_rows.like_weights(kind.name, count, x.shape[-1], len(made)).reshape(*x.shape[:-1], -1)

    monkeypatch.setattr(gguf.quants, "quantize", quantize)


def built(folder: Path, name: str, **fields: Any) -> Path:
    if name == "openpangu":
        return Pangu2(index_topk=24, **fields).write(folder)
    maker = gemma_models if name in gemma_models.SHAPES else peers
    return peers.write(folder, maker.build(name, **fields))


def stored(folder: Path, name: str, kind: str) -> Path:
    """A GGUF file whose matrices are of a type; with rows of whole blocks."""
    wide = {"hidden_size": 256, "intermediate_size": 256} if gguf_rows.block_inputs(kind) > 32 else {}
    pick, file = matrices(Kind[kind]), folder / "m.gguf"
    if name in GEMMAS:
        more = {"query_pre_attn_scalar": 16} if name == GEMMAS[0] else {}
        write_gemma(built(folder / "model", name, **wide, **more), file, pick)
    elif name == "openpangu":
        wide |= dict.fromkeys(("moe_intermediate_size", "kv_lora_rank"), 256) if wide else {"hidden_size": 64}
        write_openpangu(built(folder / "model", name, **wide), file, pick)
    elif name in files.NEAR:
        files.near(folder, name, pick, vocab_size=64, **wide)
    else:
        whole = {k: 256 for k in ("moe_intermediate_size", "kv_lora_rank") if wide and k in files.MIXTURES[name]}
        files.mixture(folder, name, pick, **wide, **whole)
    return file


def check(model: Model) -> None:
    assert isinstance(model, CpuDecoder)
    LayerFuzz(model, model).check(20)


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["auto", "int8"])
@pytest.mark.parametrize("form", FORMS, ids=" ".join)
@pytest.mark.parametrize("name", SHAPES)
def test_folders(name: str, form: tuple[str, str], keys: str, tmp_path: Path) -> None:
    check(load_model(built(tmp_path, name), form[0], "cpu", False, form[1], kv_dtype=keys))


@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(*x, marks=() if x in QUICK else pytest.mark.slow, id=" ".join(x)) for x in product(FILES, TYPES)],
)
def test_files(name: str, kind: str, tmp_path: Path) -> None:
    check(load_model(stored(tmp_path, name, kind), "auto", "cpu", False, "auto"))


@pytest.mark.parametrize(("name", "kind"), [("latent older", "Q6_K"), ("latent glm", "Q4_0"), ("latent lite", "Q8_0")])
def test_keys_of_a_latent_are_made_of_a_file_s_own_numbers(name: str, kind: str, tmp_path: Path) -> None:
    """Older files have one matrix of keys and values, in a type that floats may not be packed in. All experts run."""
    wide = {"hidden_size": 256, "kv_lora_rank": 256, "num_experts_per_tok": 8, "qk_nope_head_dim": 32}
    if older := "older" in name:
        wide |= {"num_experts_per_tok": 16, "topk_group": 4}
    _, file = files.mixture(tmp_path, name, matrices(Kind[kind]), **wide)
    ways, tokens = {"own": ("auto", "auto"), "whole": ("float32", "none")}, texts.tokens_of(30, vocab=64)
    first, second = (load_model(file, dtype, "cpu", False, form) for dtype, form in ways.values())
    assert isinstance(first, CpuDecoder)
    absorb = {piece.key: piece for piece in pieces(first.config, first.formats)}["0.absorb"]
    assert isinstance(absorb, PackedMatrix) and absorb.format is (Format.BFLOAT16 if older else Format[kind])
    own, whole = (texts.logits(model, tokens) for model in (first, second))
    assert 0 < (own - whole).std() < 0.2 * whole.std()
