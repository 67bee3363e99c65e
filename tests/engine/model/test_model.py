"""The decoder against an independent, naive one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import texts
import torch
from family_tools import KERNELS, load
from reference_model import ReferenceModel

from fastslow.engine.backends.alike import grouped
from fastslow.engine.backends.cpu import decoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.rows import Rows

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def assert_same_probs(folder: Path, groups: int | None = None, max_len: int = 0) -> None:
    tokens = texts.tokens_of(19)
    expected = ReferenceModel(folder).logits(tokens, groups, max_len).log_softmax(-1)
    model = load_model(folder, "float32")
    got = texts.logits(model, tokens, groups=groups, max_len=max_len).double().log_softmax(-1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    exact = texts.logits(load_model(folder, "float64"), tokens, groups=groups, max_len=max_len)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.log_softmax(-1), expected, rtol=0, atol=1e-9)


ONE_DEVICE = {"num_experts": 64, "num_experts_per_tok": 8}


@pytest.mark.parametrize(
    ("groups", "fields"),
    [
        *[(n, {}) for n in (None, 1, 4)],
        *[(n, {"mlp_only_layers": [1]}) for n in (0, 3, 8)],
        *[(n, ONE_DEVICE) for n in (None, 3)],
    ],
)
def test_moge_runs_the_asked_for_groups(tmp_path: Path, groups: int | None, fields: dict[str, Any]) -> None:
    assert_same_probs(checkpoints.write_moge(tmp_path, **fields), groups)


@pytest.mark.parametrize("groups", [None, 2])
def test_router_ties_go_to_the_first_expert_and_the_lower_group(tmp_path: Path, groups: int | None) -> None:
    folder = checkpoints.write_moge(tmp_path, sharded=False)
    table = checkpoints.tensors(checkpoints.MOGE)
    for name, tensor in table.items():
        if name.endswith("mlp.gate.weight"):
            tensor.zero_()
        if name.endswith("router_scale"):
            tensor.fill_(8.0)
    checkpoints.write(folder, checkpoints.MOGE, table)
    assert_same_probs(folder, groups)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_llama(tmp_path: Path, tied: bool, biases: bool) -> None:
    folder = checkpoints.write_dense(tmp_path, attention_bias=biases, mlp_bias=biases, tie_word_embeddings=tied)
    assert_same_probs(folder)


@pytest.mark.parametrize("bias", [None, False, True])
def test_pangu_embedded_has_attention_biases_unless_told_otherwise(tmp_path: Path, bias: bool | None) -> None:
    folder = checkpoints.write_dense(tmp_path, "PanguEmbeddedForCausalLM", bias=bias)
    assert grouped(load_model(folder).config.layers[0]).qkv_bias is (bias is not False)
    assert_same_probs(folder)


@pytest.mark.parametrize(
    ("scaling", "max_len"),
    [
        ({"type": "linear", "factor": 4.0}, 0),
        ({"rope_type": "dynamic", "factor": 2.0}, 0),
        ({"rope_type": "dynamic", "factor": 2.0}, 8),
        ({"rope_type": "dynamic", "factor": 2.0}, 30),
        (LLAMA3, 0),
        ({"rope_type": "default"}, 0),
    ],
)
def test_rope_scaling(tmp_path: Path, scaling: dict[str, Any], max_len: int) -> None:
    folder = checkpoints.write_dense(tmp_path, rope_scaling=scaling, max_position_embeddings=16, rope_theta=100.0)
    assert_same_probs(folder, max_len=max_len)


def test_rope_parameters_of_newer_configs_mean_the_same(tmp_path: Path) -> None:
    old = checkpoints.write_dense(tmp_path / "old", rope_scaling=LLAMA3, rope_theta=500.0)
    new = checkpoints.write_dense(tmp_path / "new", rope_parameters={**LLAMA3, "rope_theta": 500.0}, rope_theta=None)
    tokens = texts.tokens_of(9)
    assert torch.equal(texts.logits(load_model(old), tokens), texts.logits(load_model(new), tokens))


@pytest.mark.parametrize("kernels", KERNELS)
def test_features_of_rows_without_logits(tmp_path: Path, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for them changes no bit of a logit, wherever a long step is cut."""
    model = load(checkpoints.write_moge(tmp_path), kernels)
    lengths, kv, firsts = (9, 1, 30), texts.storage(model, 120), (0, 40, 80)
    slots = [np.arange(first, first + n) for first, n in zip(firsts, lengths)]

    def rows(*asked: tuple[list[int], list[int]]) -> Rows:
        segments = [texts.chunk(texts.tokens_of(n, n), 0, n, s) for n, s in zip(lengths, slots)]
        for segment, (outputs, seen) in zip(segments, asked):
            segment.outputs, segment.feature_rows = outputs, seen
        return Rows.of(segments)

    every = rows(*(([*range(n)], [*range(n)]) for n in lengths))
    full, middle = model.forward(every, kv, (2, 0)), model.forward(every, kv, (1,)).features
    some = rows(([8], [2, 3, 8]), ([], [0]), ([29, 4], []))
    places = [2, 3, 8, 9]
    for most in (1024, 7):
        monkeypatch.setattr(decoder, "MOST_ROWS", most)
        found, blind = model.forward(some, kv, (2, 0)), model.forward(some, kv)
        assert found.features is not None and full.features is not None and middle is not None
        assert torch.equal(found.features, full.features[places])
        assert found.features.shape[1] == 2 * model.config.hidden_size
        last = model.forward(some, kv, (0,)).features
        assert last is not None and torch.equal(last, full.features[places, 64:])
        assert torch.equal(found.logits, full.logits[[8, 39, 14]])
        assert torch.equal(found.logits, blind.logits) and blind.features is None
        none = model.forward(rows(([], [5]), ([], []), ([], [29])), kv, (1,))
        assert none.features is not None and none.logits.shape == (0, model.config.vocab_size)
        assert torch.equal(none.features, middle[[5, 39]])


def test_feature_layers_and_empty_steps_are_checked(tmp_path: Path) -> None:
    model = load_model(checkpoints.write_dense(tmp_path))
    kv = texts.storage(model, 4)
    rows = Rows.of([texts.chunk([1, 2], 0, 2, np.arange(2))])
    with pytest.raises(ValueError, match=r"feature layer 2 must be in 0\.\.1"):
        model.forward(rows, kv, features=(0, 2))
    with pytest.raises(ValueError, match="at least 1 row"):
        model.forward(Rows.of([]), kv)
