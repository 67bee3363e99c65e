"""Recurrent layers on the CPU kernels: sizes that fill no vector, formats, threads, steps in parts, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import family_tools
import numpy as np
import pytest
import texts
import torch
from checkpoints import DENSE, tensors, write
from gguf_hybrid import HYBRID, TYPES, write_hybrid
from kernel_tools import compiled
from layer_fuzz import LayerFuzz
from pangu_2_reference import Pangu2
from refusals import refused

from fastslow.engine.backends.cpu import decoder
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.pieces import limits
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.rows import Rows, RunningRows, Segment

pytestmark = compiled
ODD = {"linear_key_head_dim": 18, "linear_value_head_dim": 40, "linear_conv_kernel_dim": 3, "head_dim": 24}
CONV: dict[str, Any] = DENSE | {"architectures": ["Lfm2ForCausalLM"], "num_hidden_layers": 4, "hidden_size": 72}
CONV |= {"layer_types": ["full_attention", "conv", "conv", "conv"], "conv_L_cache": 5, "norm_eps": 1e-5}
CONV |= {"block_auto_adjust_ff_dim": False, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 24}
del CONV["rms_norm_eps"]
FORMS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"}, "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"}, "int8 keys": {"quantization": "int4", "kv_dtype": "int8"},
}  # fmt: skip
NAMES = "qwen35", "qwen35moe", "conv", "openpangu"
TOKENS = texts.tokens_of(150)


def checkpoint(folder: Path, name: str, seed: int = 0) -> Path:
    if name == "openpangu":
        return Pangu2(seed, vocab_size=96).write(folder)
    if name == "conv":
        return write(folder, CONV, tensors(CONV, seed))
    return write_hybrid(folder, name, seed, **(ODD if name == "qwen35" else {}))


def kernels(folder: Path, **options: Any) -> CpuDecoder:
    model = load_model(folder, device="cpu", progress=False, **options)
    assert isinstance(model, CpuDecoder)
    return model


def logits(model: Model, sizes: list[int]) -> torch.Tensor:
    return texts.cached_logits(model, kv_cache_for(model, 16), TOKENS, sizes)


@pytest.mark.parametrize("name", [*HYBRID, "conv"])
def test_log_probabilities_are_those_of_plain_torch(name: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, name)
    found, wanted = (logits(family_tools.load(path, own), [150]).log_softmax(-1) for own in (True, False))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_rows_have_the_same_bits_however_a_text_is_cut(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By threads, by chunks that are folded in at once and later, and by parts of a long step."""
    model = kernels(checkpoint(tmp_path, name), **FORMS[form])
    threads, wanted = torch.get_num_threads(), logits(model, [150])
    try:
        for count, most in ((1, 1024), (3, 37)):
            torch.set_num_threads(count)
            monkeypatch.setattr(decoder, "MOST_ROWS", most)
            for sizes in ([150], [64, 48, 1, 1, 1, 35], [1] * 90 + [60]):
                assert torch.equal(logits(model, sizes), wanted), (count, most, sizes)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[(name, form) for name in NAMES for form in FORMS])
def fuzz(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    name, form = request.param
    folder = tmp_path_factory.mktemp("running")
    return LayerFuzz(*(kernels(checkpoint(folder / str(seed), name, seed), **FORMS[form]) for seed in range(2)))


@pytest.mark.slow
def test_many_answers_are_those_of_plain_decoding(fuzz: LayerFuzz) -> None:
    fuzz.check(460, seed=2)


def step() -> Rows:
    """A text of three rows and two drafted ones, and a drafted row after two that are not folded in."""
    none = np.empty(0, dtype=np.int64)
    chain = RunningRows(0, none, 0, 3, np.arange(5), ((2, 4),))
    later = RunningRows(1, np.arange(2), 0, 0, np.array([2]))
    texts_ = [
        Segment([5, 6, 7, 8, 9], range(5), [-1, 0, 1, 2, 2], np.arange(5), none, outputs=[4], running=chain),
        Segment([9], [2], [-1], np.array([18]), np.arange(16, 18), outputs=[0], running=later),
    ]
    return Rows.of(texts_)


def change(request: int, **fields: Any) -> Callable[[Rows], None]:
    def changed(rows: Rows) -> None:
        assert rows.running is not None
        each = list(rows.running)
        each[request] = replace(each[request], **fields)
        rows.running = tuple(each)

    return changed


def follow(row: int, parent: int) -> Callable[[Rows], None]:
    def changed(rows: Rows) -> None:
        rows.parents[row] = parent

    return changed


@pytest.mark.parametrize(("spoil", "sentence"), [
    (change(0, place=4), r"place of a running state 4 must be in 0\.\.3"),
    (change(1, place=-1), "place of a running state -1 must be"),
    (change(0, stable=6), r"final rows 6 must be in 0\.\.5"),
    (change(0, at=np.array([0, 1, 2, 3, 48])), r"ring row 48 must be in 0\.\.47"),
    (change(1, before=np.array([0, -1])), "ring row -1 must be"),
    (change(1, folds=1), "1 of 2 rows before cannot be folded in"),
    (change(1, stable=1), "0 of 2 rows before cannot be folded in"),
    (change(0, snapshots=((2, 6),)), r"place of a snapshot 6 must be in 0\.\.5"),
    (change(0, snapshots=((4, 4),)), r"row of a snapshot 4 must be in 1\.\.3"),
    (follow(2, 0), "row 2 follows row 0, which it cannot"), (follow(4, 1), "row 4 follows row 1"),
    (lambda rows: setattr(rows, "running", None), "the rows have no running states"),
])  # fmt: skip
def test_steps_that_reach_outside_running_states_are_refused(
    spoil: Callable[[Rows], None], sentence: str, tmp_path: Path
) -> None:
    model = kernels(checkpoint(tmp_path, "qwen35"), dtype="float32")
    kv = kv_cache_for(model, 2, places=4, snapshots=2).storage
    wanted, rows = model.forward(step(), kv).logits, step()
    spoil(rows)
    refused(sentence, model.forward, rows, kv)
    kv = kv_cache_for(model, 2, places=4, snapshots=2).storage
    assert torch.equal(model.forward(step(), kv).logits, wanted)


def test_what_the_kernels_do_not_run_goes_to_plain_torch(tmp_path: Path) -> None:
    for name, fields in (("all", {"layer_types": ["linear_attention"] * 4}), ("taps", {"linear_conv_kernel_dim": 17})):
        path = write_hybrid(tmp_path / name, "qwen35", **fields)
        assert limits.unsupported(load_model(path, progress=False).config) in {
            "they need a layer of attention",
            "they have no room for it: kernel=17 must be a whole number in 2..16",
        }
    assert TYPES.count("full_attention") == 1
