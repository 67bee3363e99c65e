"""The GPU's building blocks by their numbers, on CPU tensors: no GPU is needed, and none is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import texts
import torch
from checkpoints import write_dense, write_moge
from fake_cuda import RecordingOps
from layout_cases import CASES
from torch import Tensor

from fastslow.engine.backends.accelerator.cuda import CudaOps
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.weights import Stacked
from fastslow.engine.backends.loader import DTYPES, load_model
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.types import Rows

CPU = torch.device("cpu")


def load(folder: Path, dtype: str, kind: type[CudaOps] = RecordingOps) -> PagedDecoder:
    config = ModelConfig.from_folder(folder)
    with Checkpoint.open(folder, config).reader(progress=False) as read:
        return PagedDecoder(Stacked(config, kind(CPU), DTYPES[dtype], CPU, read))


def test_widths_that_grouped_products_do_not_take_run_expert_by_expert(tmp_path: Path) -> None:
    """Their rows must be multiples of 16 bytes; and what reads sizes on the host is not recorded."""
    for folder in (
        write_moge(tmp_path / "hidden", hidden_size=36),
        write_moge(tmp_path / "experts", moe_intermediate_size=7),
    ):
        model = load(folder, "bfloat16")
        found = texts.logits(model, texts.tokens_of(20), [12, *[1] * 8])
        assert not model.ops.records and model.recorder.replays == 0
        exact = texts.logits(load_model(folder, "float32"), texts.tokens_of(20))
        assert (found - exact).abs().mean() < 0.1 * exact.std()


@pytest.fixture(scope="module")
def moge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moge(tmp_path_factory.mktemp("moge"), mlp_only_layers=[1])


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


def test_recorded_steps(tmp_path: Path) -> None:
    """Nothing in a step waits for the host; a text grows past the widths of its block tables."""
    folder = write_dense(tmp_path)
    tokens = texts.tokens_of(270)
    model = load(folder, "float32")
    wanted = texts.logits(load_model(folder, "float32", "cpu"), tokens)
    sizes = [120, *[1] * 20, 100, *[1] * 30]
    near(texts.logits(model, tokens, sizes), wanted)
    assert model.recorder.recorded == 3 and model.recorder.replays > 40  # 1, 2 and 4 blocks


def test_grouped_products_in_bfloat16(moge: Path) -> None:
    """Recorded, and as near to float32 as the CPU's kernels come in bfloat16."""
    tokens = texts.tokens_of(60)
    model = load(moge, "bfloat16")
    exact = texts.logits(load_model(moge, "float32", "cpu"), tokens)
    allowed = (texts.logits(load_model(moge, "bfloat16", "cpu"), tokens) - exact).abs().mean()
    found = texts.logits(model, tokens, [50, *[1] * 10])
    assert model.recorder.replays == 9
    assert (found - exact).abs().mean() < 2 * allowed


@pytest.mark.parametrize("name", ["a tree", "all kinds", "rows that share no parent"])
def test_trees_beside_chains(moge: Path, name: str) -> None:
    """The logits of a node are those of its path, whatever stands beside it."""
    rows = Rows.of(CASES[name])
    known = np.unique(np.concatenate(rows.contexts))
    sides = [torch.randn(3, len(known), 2, 16, generator=random(n)) for n in (1, 2)]
    rows.tokens[:] = np.arange(len(rows.tokens)) % 90
    rows.outputs = np.arange(len(rows.tokens))
    rows.only_best = np.zeros(len(rows.tokens), dtype=np.bool_)

    def step(model: Model) -> Tensor:
        kv = texts.storage(model, 128)
        kv.write(known, *sides)
        return model.forward(rows, kv).logits

    near(step(load(moge, "float32")), step(load_model(moge, "float32", "cpu")))


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_another_texts_nan_stays_its_own(moge: Path) -> None:
    """Blocks are read whole, and what a failed request left behind a text's end is not finite."""
    model, tokens = load(moge, "float32"), texts.tokens_of(12)
    kv = texts.storage(model, 128)
    rest = np.arange(12, 128)
    kv.write(rest, *(torch.full_like(side, torch.nan) for side in kv.read(rest)))
    found = model.forward(Rows.of([texts.chunk(tokens, 0, 12, np.arange(12))]), kv).logits
    assert torch.equal(found, texts.logits(model, tokens))
