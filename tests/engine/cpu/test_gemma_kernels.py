"""Gemma's parts on the kernels: heads of several sizes, shared keys, per-layer embeddings, an MLP beside experts."""

from typing import Any

import gemma_layers
import pytest
import texts
import torch
from family_tools import check_drafts
from gemma_layers import CONFIGS, on_kernels, on_torch
from kernel_tools import compiled

from fastslow.engine.backends.cpu.decoder import unsupported
from fastslow.engine.backends.cpu.formats import Formats

pytestmark = compiled
TOKENS = texts.tokens_of(300)
FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"formats": Formats.of(torch.bfloat16, "none")},
    "int8": {"formats": Formats.of(torch.bfloat16, "int8")},
    "int4": {"formats": Formats.of(torch.bfloat16, "int4")},
    "int8 keys": {"int8_keys": True},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probabilities_are_those_of_plain_torch(name: str) -> None:
    config = CONFIGS[name]
    config.check()
    assert unsupported(config) is None
    table = gemma_layers.weights(config)
    wanted = texts.logits(on_torch(config, table, torch.float64), TOKENS).log_softmax(-1)
    assert wanted.std() > 1
    model = on_kernels(config, table)
    for groups in (None, 1, 0) if config.routed else (None,):
        if groups is not None:
            wanted = texts.logits(on_torch(config, table, torch.float64), TOKENS, groups=groups).log_softmax(-1)
        found = texts.logits(model, TOKENS, groups=groups).double().log_softmax(-1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("form", FORMS)
def test_bits_of_a_row_are_its_own(name: str, form: str) -> None:
    """Whole, in chunks and alone; beside others and in trees."""
    config = CONFIGS[name]
    model = on_kernels(config, gemma_layers.weights(config), **FORMS[form])
    whole = texts.logits(model, TOKENS)
    for sizes in ([1] * 40 + [17, 120, 3, 120], [299, 1]):
        assert texts.logits(model, TOKENS, sizes).equal(whole)
    check_drafts(model)
