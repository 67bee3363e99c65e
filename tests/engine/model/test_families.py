"""Every family against transformers' own classes, with random weights, on a text longer than a window."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pangu_v2_tools
import peer_models as peers
import pytest
import texts
import torch
from checkpoints import FAMILIES, tensors
from family_tools import KERNELS, load
from kernel_tools import compiled
from layer_fuzz import FEW_AND_MANY, LayerFuzz
from pangu_v2_tools import MOE
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import Model

NO_DOWN = {"down_proj_blocks": None, "down_proj_scales": None}
LENGTH = 100  # beyond yarn's original length of 64
SHAPES = [pytest.param(name, marks=() if name in peers.FIRST else pytest.mark.slow) for name in peers.SHAPES]


def assert_same(model: Model, tokens: list[int], expected: Tensor) -> None:
    got = texts.logits(model, tokens).double().log_softmax(-1)
    assert expected.std() > 1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs, tokens = peers.build(name), texts.tokens_of(LENGTH)
    model = load(peers.write(tmp_path, theirs), kernels)
    assert_same(model, tokens, peers.logprobs(theirs, tokens))


QUICK = ("qwen2", "gpt_oss", "pangu_v2")  # the others wait for the slow tests, as plain torch does
FUZZED = [
    pytest.param(
        (family, kernels), marks=() if kernels and family in QUICK else pytest.mark.slow, id=f"{family}-{kernels}"
    )
    for family, kernels in product((*FAMILIES, "pangu_v2"), KERNELS)
]
SMALL: dict[str, Any] = {"vocab_size": 32, "num_hidden_layers": 3, "intermediate_size": 32}


@pytest.fixture(scope="module", params=FUZZED)
def fuzz(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    family, kernels = request.param
    config, make = (MOE, pangu_v2_tools.tensors) if family == "pangu_v2" else (FAMILIES[family], tensors)
    config = config | SMALL | ({"max_window_layers": 1} if family == "qwen2" else {})
    return LayerFuzz.of(tmp_path_factory.mktemp(family), config, make(config), kernels)


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    fuzz.check(count)


# gpt-oss: experts that a file holds in one tensor, in MXFP4


class Mxfp4(NamedTuple):
    """A folder, a text and its log-probabilities."""

    folder: Path
    tokens: list[int]
    expected: Tensor


@pytest.fixture(scope="module")
def mxfp4(tmp_path_factory: pytest.TempPathFactory) -> Mxfp4:
    theirs, tokens = peers.build("gpt_oss"), texts.tokens_of(LENGTH)
    folder = peers.write(tmp_path_factory.mktemp("mxfp4"), theirs)
    peers.pack_experts(folder, theirs)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (folder / "config.json").write_text(json.dumps(config))
    return Mxfp4(folder, tokens, peers.logprobs(theirs, tokens))


@pytest.mark.parametrize("kernels", KERNELS)
def test_experts_in_mxfp4_run_as_transformers_reads_them(kernels: bool, mxfp4: Mxfp4) -> None:
    assert_same(load(mxfp4.folder, kernels), mxfp4.tokens, mxfp4.expected)


@compiled
def test_experts_in_mxfp4_are_packed_as_they_are(mxfp4: Mxfp4) -> None:
    model = load_model(mxfp4.folder, device="cpu", quantization="auto")
    assert isinstance(model, CpuDecoder)
    assert model._matrix("0.expert1.down").format == Format.MXFP4
    found = texts.logits(model, mxfp4.tokens).log_softmax(-1)
    # activations are in int8
    assert (found - mxfp4.expected).std() < 0.15 * mxfp4.expected.std()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate_up_proj_scales": None}, "gate_up_proj_blocks, but lacks .*gate_up_proj_scales"),
        (NO_DOWN, r"lacks tensor .*0.mlp.experts.down_proj of shape \[8, 96, 64\]"),
        ({"gate_up_proj_bias": None}, "lacks tensor .*gate_up_proj_bias of shape"),
        ({"3.up_proj.weight": (96, 64)}, "3.up_proj.weight twice: .*gate_up_proj_blocks holds"),
        ({"down_proj": (8, 96, 64)}, "down_proj.weight twice: .*down_proj_blocks holds it, too"),
        ({"down_proj_bias": (8, 63)}, r"down_proj_bias has shape \[8, 63\], but config.json asks"),
        ({"gate_up_proj_blocks": (8, 192, 2, 16)}, "gate_up_proj_blocks is of dtype F32"),
        ({"other": (3,)}, "unexpected tensor .*experts.other"),
    ],
    ids=str,
)
def test_files_that_do_not_fit(
    tmp_path: Path, mxfp4: Mxfp4, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    table = load_file(mxfp4.folder / "model.safetensors")
    for stem, shape in change.items():
        table.pop(f"model.layers.0.mlp.experts.{stem}", None)
        if shape is not None:
            table[f"model.layers.0.mlp.experts.{stem}"] = torch.zeros(shape)
    save_file(table, tmp_path / "model.safetensors")
    shutil.copy(mxfp4.folder / "config.json", tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, False)
    assert "\n" not in str(caught.value)
