"""Latent attention in the accelerator's decoder, on a GPU's building blocks and on simulated NPUs: what plain torch says
on the CPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import texts
import torch
from checkpoints import random_table
from fake_cuda import RecordingOps
from latent_models import EVERY, LITE
from layer_fuzz import LayerFuzz, near
from npu_tools import CHIPS, simulated
from pairs import pairwise
from torch import Tensor

from fastslow.engine.backends.accelerator import cuda, decoder
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.ops import PagedOps
from fastslow.engine.backends.accelerator.weights import Stacked
from fastslow.engine.backends.device import DeviceChoice, ops_for, paged_ops_for
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.backends.torch.weights import TorchReader, Weights
from fastslow.engine.model.config import ModelConfig

CPU, DEVICES = torch.device("cpu"), ("cuda", *CHIPS)
CONFIGS = EVERY | {"dense": LITE | {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0}}


@pytest.fixture(params=DEVICES)
def ops(request: pytest.FixtureRequest) -> Iterator[PagedOps]:
    if request.param == "cuda":
        yield RecordingOps(CPU)
        return
    with simulated(request.param):
        yield paged_ops_for(DeviceChoice("npu", CPU))


def plain(config: ModelConfig, table: dict[str, Tensor]) -> Decoder:
    return Decoder(Weights(config, TorchReader(ops_for("cpu"), torch.float32, CPU, table.__getitem__)))


@pytest.mark.parametrize(("name", "few", "ops"), pairwise([*CONFIGS], (False, True), DEVICES), indirect=["ops"])
def test_logprobs(name: str, few: bool, ops: PagedOps, monkeypatch: pytest.MonkeyPatch) -> None:
    """few: products at once, and scattered slots. A GPU records steps without experts in float32."""
    for module in (cuda, decoder) if few else ():
        monkeypatch.setattr(module, "SCORES", 2048)
    config, tokens = ModelConfig.from_json(CONFIGS[name]), texts.tokens_of(170, vocab=32)
    table, slots = random_table(config), np.random.default_rng(1).permutation(400)[:170] if few else None
    model, cpu = PagedDecoder(Stacked(config, ops, torch.float32, CPU, table.__getitem__)), plain(config, table)
    for wanted in (None, 1):
        sizes = [140, *[1] * 3, 10, *[1] * 2, 15]
        found = texts.logits(model, tokens, sizes, wanted, slots=slots).log_softmax(-1)
        expected = texts.logits(cpu, tokens, groups=wanted).log_softmax(-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    assert (model.recorder.replays > 0) == (ops.latents and name == "dense" and not few)


SLOW = [pytest.param(500, device, marks=pytest.mark.slow) for device in DEVICES]


@pytest.mark.parametrize(("count", "ops"), [(20, "cuda"), *SLOW], indirect=["ops"])
def test_answers(ops: PagedOps, count: int) -> None:
    """Drafted rows, trees, the layer that drafts."""
    config = ModelConfig.from_json(EVERY["v3"])
    table = random_table(config)
    model = PagedDecoder(Stacked(config, ops, torch.float32, CPU, table.__getitem__))
    assert model.mtp is not None
    LayerFuzz(model, plain(config, near(table)), plain(config, table)).check(count)
