"""Latent attention in the accelerator's decoder, on a GPU's building blocks and on simulated NPUs: what plain torch says
on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import texts
import torch
from accelerator_tools import DEVICES, ops_of, paged, plain
from checkpoints import random_table
from family_tools import load
from latent_models import CHOOSING, EVERY, LITE, OPENPANGU
from layer_fuzz import LayerFuzz, near
from npu_tools import CHIPS, simulated
from pairs import pairwise
from pangu_2_reference import Pangu2

from fastslow.engine.backends.accelerator import attention, cuda
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.ops import PagedOps
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.config import ModelConfig

DENSE = {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0}
STREAMS = OPENPANGU | DENSE | {"use_mome": False, "router_sliding_window": None, "dsa_layers": []}
STREAMS |= {"swa_layers": [1, 2], "sliding_window_list": [6, 30]}
CONFIGS = EVERY | CHOOSING | {"dense": LITE | DENSE, "dense streams": STREAMS}


@pytest.mark.parametrize(("name", "few", "ops"), pairwise([*CONFIGS], (False, True), DEVICES), indirect=["ops"])
def test_logprobs(name: str, few: bool, ops: PagedOps, monkeypatch: pytest.MonkeyPatch) -> None:
    """few: products at once, and scattered slots. A GPU records steps without experts in float32."""
    for module in (attention, cuda) if few else ():
        monkeypatch.setattr(module, "SCORES", 2048)
    config, tokens = ModelConfig.from_json(CONFIGS[name]), texts.tokens_of(170, vocab=32)
    read, slots = random_table(config).__getitem__, np.random.default_rng(1).permutation(400)[:170] if few else None
    model, cpu = paged(config, ops, read), plain(config, read)
    for wanted in (None, 1):
        sizes = [140, *[1] * 3, 10, *[1] * 2, 15]
        found = texts.logits(model, tokens, sizes, wanted, slots=slots).log_softmax(-1)
        expected = texts.logits(cpu, tokens, groups=wanted).log_softmax(-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (model.recorder.replays > 0) == (ops.latents and name.startswith("dense") and not few)


@pytest.mark.parametrize("device", DEVICES)
def test_numbers_of_16_bits(device: str) -> None:
    """Of openPangu 2.0, in which rounding changes what late rows choose: as far off as plain torch is."""
    published, tokens = {"mhc_num_stream": 4, "mhc_recur_norm": 20}, texts.tokens_of(120, vocab=32)
    config = ModelConfig.from_json(OPENPANGU | published)
    read, dtype = random_table(config).__getitem__, torch.float16 if device == CHIPS[1] else torch.bfloat16
    expected, off = texts.logits(plain(config, read), tokens).log_softmax(-1), list[float]()
    with ops_of(device, exact=False) as ops:
        for model in (paged(config, ops, read, dtype), plain(config, read, dtype)):
            found = texts.logits(model, tokens, [100, *[1] * 5, 15]).log_softmax(-1)
            off.append((found - expected).square().mean().sqrt().item())
    assert 0 < off[0] < 1.5 * off[1], off


DRAFTING, SLOW = ("v3", "glm5", "openpangu"), pytest.mark.slow
MANY = [pytest.param(name, 500, device, marks=SLOW) for name in DRAFTING for device in DEVICES]
FEW = [("v3", 20, "cuda"), ("openpangu", 20, CHIPS[0])]


@pytest.mark.parametrize(("name", "count", "ops"), [*FEW, *MANY], indirect=["ops"])
def test_answers(name: str, ops: PagedOps, count: int) -> None:
    """Drafted rows, trees, the layers that draft."""
    config = ModelConfig.from_json(CONFIGS[name])
    table = random_table(config)
    model = paged(config, ops, table.__getitem__)
    assert model.mtp is not None
    kin, cpu = (plain(config, some.__getitem__) for some in (near(table), table))
    LayerFuzz(model, kin, cpu).check(count, 1)


def test_openpangu_of_a_folder(tmp_path: Path, logged: list[str]) -> None:
    folder = Pangu2(**OPENPANGU).write(tmp_path)
    with simulated(CHIPS[0]):
        model = load_model(folder, "auto", "npu", progress=False)
    assert isinstance(model, PagedDecoder) and model.mtp is not None and model.mtp.heads == 3
    assert any("steps with running states are not recorded" in line for line in logged)
    found, expected = (texts.logits(x, texts.tokens_of(60, vocab=32)) for x in (model, load(folder, False)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
