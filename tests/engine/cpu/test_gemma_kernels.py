"""Gemma's parts on the kernels: heads of several sizes, shared keys, per-layer embeddings, an MLP beside experts."""

from dataclasses import replace
from typing import Any

import gemma_layers
import numpy as np
import pytest
import texts
import torch
from gemma_layers import CONFIGS, LOCAL, on_kernels, on_torch
from kernel_tools import compiled, made
from layer_fuzz import LayerFuzz
from refusals import refused

from fastslow.engine.backends.cpu.compiled.structures import CMatrix
from fastslow.engine.backends.cpu.formats import Formats
from fastslow.engine.backends.cpu.pieces.limits import unsupported
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.rows import Rows

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


def test_layers_without_keys_run_for_rows_that_are_read() -> None:
    """And what these give does not change."""
    config = CONFIGS["edge"]
    model = on_kernels(config, gemma_layers.weights(config))

    def step(outputs: list[list[int]], seen: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        kv, slots = texts.storage(model, 256), np.arange(256)
        texts_ = [
            texts.chunk(TOKENS, 0, 70, slots),
            texts.chunk(TOKENS[9:], 0, 20, slots[80:]),
            texts.chunk(TOKENS, 0, 9, slots[128:]),
        ]
        for part, wanted, features in zip(texts_, outputs, seen):
            part.outputs, part.feature_rows = wanted, features
        out = model.forward(Rows.of(texts_), kv, (0, 2, 5))
        last = Rows.of([texts.chunk(TOKENS, 70, 71, slots)])
        again = model.forward(last, kv).logits
        assert out.seen is not None
        return torch.cat((out.logits, again)), torch.as_tensor(out.seen)

    every, features = step([list(range(n)) for n in (70, 20, 9)], [list(range(n)) for n in (70, 20, 9)])
    none = list[int]()
    for outputs, seen in (
        ([[69], [3, 19], none], [[5], none, [2]]),
        ([none] * 3, [none] * 3),
        ([none, [0], none], [none] * 3),
    ):
        starts = (0, 70, 90)
        found, looked = step(outputs, seen)
        rows = [start + row for start, some in zip(starts, outputs) for row in some]
        assert found.equal(every[[*rows, -1]])
        assert looked.equal(features[[start + row for start, some in zip(starts, seen) for row in some]])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("form", FORMS)
def test_bits_of_a_row_are_its_own(name: str, form: str) -> None:
    """Whole, in chunks and alone; beside others and in trees."""
    config = CONFIGS[name]
    model = on_kernels(config, gemma_layers.weights(config), **FORMS[form])
    whole = texts.logits(model, TOKENS)
    for sizes in ([1] * 40 + [17, 120, 3, 120], [299, 1]):
        assert texts.logits(model, TOKENS, sizes).equal(whole)
    LayerFuzz(model, model).check(20)


@pytest.mark.parametrize(("name", "changes", "sentence"), [
    ("edge", {"token_at": 240 - 39}, "per-layer embeddings from 201 on leave the 240 of a row"),
    ("edge", {"token_at": -1}, "per-layer embeddings from -1 on leave"),
    ("edge", {"token_width": 65537}, r"token_width=65537 must be in 0\.\.65536"),
    ("edge", {"token_width": 33, "token_inputs": 10**6}, "matrix token_up is 64 by 40, not 64 by 33"),
    ("edge", {"token_width": 0}, "a layer has per-layer embeddings, and the model none"),
    ("edge", {"token_projection_norm": None}, "vector token_projection_norm is missing"),
    ("edge", {"token_norm": None}, "vector token_norm is missing"),
    ("edge", {"token_gate": CMatrix()}, "matrix token_gate is 0 by 0, not 64 by 64"),
    ("edge", {"keys": CMatrix()}, "a layer has values and no keys"),
    ("edge", {"head_dim": 34}, "matrix queries is 128 by 64, not 256 by 64"),
    ("mixture", {"value_dim": 16}, "value_dim=16 of values that are normed, or made of keys, must be head_dim=32"),
    ("mixture", {"dense_post_norm": None}, "vector dense_post_norm is missing"),
    ("mixture", {"down": CMatrix(), "gate_up": CMatrix()}, "experts add beside an MLP, and no such two"),
    ("third", {"layer_scale": 64, "mlp_post_norm": None}, "a layer has a scale, and no norm before it"),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(name: str, changes: dict[str, Any], sentence: str) -> None:
    model = on_kernels(CONFIGS[name], gemma_layers.weights(CONFIGS[name]))
    refused(sentence, made, model, **changes)


def test_a_step_without_what_its_layers_read_is_refused() -> None:
    model = on_kernels(CONFIGS["edge"], gemma_layers.weights(CONFIGS["edge"]))
    model._table = None
    refused("the rows have no per-layer embeddings", texts.logits, model, TOKENS[:4])
    wider = replace(CONFIGS["edge"], layers=CONFIGS["edge"].layers[:2], per_layer_embedding=None)
    assert unsupported(wider) is None
    for layers, sentence in (
        (replace(wider.layers[0], mixer=replace(LOCAL, score_cap=2.0)), "differ in caps"),
        (replace(wider.layers[0], norms=LayerNorms(RmsNorm(1e-5), after=True)), "norms in several places"),
        (replace(wider.layers[0], mixer=replace(LOCAL, value_norm=RmsNorm(1e-5))), "one RMSNorm for all places"),
    ):
        assert sentence in str(unsupported(replace(wider, layers=(layers, wider.layers[1]))))
