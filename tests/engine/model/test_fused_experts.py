"""gpt-oss: experts that a file holds in one tensor, in floats or in MXFP4."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import gguf
import numpy as np
import pytest
import texts
import torch
from checkpoints import FAMILIES, tensors
from family_tools import load
from torch import Tensor

from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.model.config import ModelConfig

CONFIG = {**FAMILIES["gpt_oss"], "num_hidden_layers": 2, "torch_dtype": "bfloat16"}
FIRST = "model.layers.0.mlp.experts"
NO_DOWN = {"down_proj_blocks": None, "down_proj_scales": None}


def whole(packed: bool) -> dict[str, Tensor]:
    """The tensors of CONFIG as files have them."""
    table = tensors(CONFIG)
    random = torch.Generator().manual_seed(5)
    count, hidden, inner = 8, CONFIG["hidden_size"], CONFIG["intermediate_size"]
    for n in range(2):
        prefix = f"model.layers.{n}.mlp.experts"
        for stem, outputs, inputs in (("gate_up", 2 * inner, hidden), ("down", hidden, inner)):
            sides = ("gate", "up") if stem == "gate_up" else ("down",)
            for kind in ("weight", "bias"):
                own = [
                    torch.stack([table.pop(f"{prefix}.{e}.{s}_proj.{kind}") for s in sides], 1)
                    for e in range(count)
                ]
                stacked = torch.stack([one.flatten(0, 1) for one in own])
                if kind == "bias":
                    table[f"{prefix}.{stem}_proj_bias"] = stacked
                elif not packed:
                    table[f"{prefix}.{stem}_proj"] = stacked.transpose(1, 2).contiguous()
            if packed:
                shape = (count, outputs, inputs // 32)
                blocks = torch.randint(256, (*shape, 16), generator=random, dtype=torch.uint8)
                scales = torch.randint(100, 130, shape, generator=random, dtype=torch.uint8)
                table[f"{prefix}.{stem}_proj_blocks"] = blocks
                table[f"{prefix}.{stem}_proj_scales"] = scales
    return {name.replace(".mlp.gate.", ".mlp.router."): x for name, x in table.items()}


def test_one_tensor_or_many_are_the_same_model(tmp_path: Path) -> None:
    one = checkpoints.write(tmp_path / "one", CONFIG, whole(packed=False), shards=3)
    many = checkpoints.write(tmp_path / "many", CONFIG, tensors(CONFIG))
    tokens = texts.tokens_of(20)
    got, expected = (texts.logits(load(f, False), tokens) for f in (one, many))
    assert torch.equal(got, expected)


def test_rows_in_mxfp4_are_those_of_a_gguf_file_bit_for_bit(tmp_path: Path) -> None:
    config = ModelConfig.from_json(CONFIG)
    folder = checkpoints.write(tmp_path, CONFIG, whole(packed=True))
    checkpoint = Checkpoint.open(folder, config)
    with checkpoint.mxfp4() as rows, checkpoint.reader(progress=False) as read:
        for side, outputs in (("gate", 32), ("up", 32), ("down", 64)):
            name = f"{FIRST}.5.{side}_proj.weight"
            packed = rows(name)
            assert packed is not None
            assert packed.shape[0] == outputs
            theirs = gguf.dequantize(packed.numpy(), gguf.GGMLQuantizationType.MXFP4)
            assert np.array_equal(read(name).numpy(), theirs)
        assert rows("model.layers.0.self_attn.q_proj.weight") is None
        assert read("model.layers.1.mlp.gate.bias").shape == (8,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate_up_proj_scales": None}, "gate_up_proj_blocks, but lacks .*gate_up_proj_scales"),
        (NO_DOWN, r"lacks tensor .*0.mlp.experts.down_proj of shape \[8, 32, 64\]"),
        ({"gate_up_proj_bias": None}, "lacks tensor .*gate_up_proj_bias of shape"),
        ({"3.up_proj.weight": (32, 64)}, "3.up_proj.weight twice: .*gate_up_proj_blocks holds"),
        ({"down_proj": (8, 32, 64)}, "down_proj.weight twice: .*down_proj_blocks holds it, too"),
        ({"down_proj_bias": (8, 63)}, r"down_proj_bias has shape \[8, 63\], but config.json asks"),
        ({"gate_up_proj_blocks": (8, 64, 2, 16)}, "gate_up_proj_blocks is of dtype F32"),
        ({"other": (3,)}, "unexpected tensor .*experts.other"),
    ],
    ids=str,
)
def test_files_that_do_not_fit(
    tmp_path: Path, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    table = whole(packed=True)
    for stem, shape in change.items():
        table.pop(f"{FIRST}.{stem}", None)
        if shape is not None:
            table[f"{FIRST}.{stem}"] = torch.zeros(shape)
    folder = checkpoints.write(tmp_path, CONFIG, table)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder, False)
    assert "\n" not in str(caught.value)
