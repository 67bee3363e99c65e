"""`device="npu"` as callers meet it: what is missing is said, what runs is what the CPU says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from checkpoints import write_dense, write_moge
from npu_tools import CHIPS, simulated
from tokenizers_tiny import write_bpe

from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.loader import DTYPES, load_model
from fastslow.engine.backends.torch.reference import ReferenceOps
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.decoder import Decoder, Weights
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.request.options import Prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_moge(tmp_path_factory.mktemp("moge"), vocab=320)
    write_bpe(folder, vocab_size=320)
    return folder


def test_without_torch_npu_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    with pytest.raises(ValueError, match=r"^device 'npu' needs torch-npu .*'fastslow\[npu\]"):
        LLM(folder, device="npu", progress=False)


def test_an_unknown_chip_is_refused(folder: Path) -> None:
    with (
        simulated("Ascend950PR_9599"),
        pytest.raises(ValueError, match="chip 'Ascend950PR_9599' is not one of the known"),
    ):
        load_model(folder, device="npu")


@pytest.mark.parametrize(
    ("fields", "dtype", "pattern"),
    [
        ({}, "float32", "need dtype bfloat16 or float16, not float32"),
        ({"head_dim": 256}, "bfloat16", "need head_dim of at most 192, not 256"),
        ({"moe_intermediate_size": 40}, "bfloat16", "need moe_intermediate_size to be a multiple"),
    ],
)
def test_a_model_that_the_kernels_cannot_run(
    tmp_path: Path, fields: dict[str, Any], dtype: str, pattern: str
) -> None:
    folder = write_moge(tmp_path, **fields)
    with simulated(CHIPS[0], exact=False), pytest.raises(ValueError, match=pattern):
        load_model(folder, dtype, "npu")


@pytest.mark.parametrize(("chip", "dtype"), [(CHIPS[0], torch.bfloat16), (CHIPS[1], torch.float16)])
def test_auto_is_a_dtype_that_runs(folder: Path, chip: str, dtype: torch.dtype) -> None:
    with simulated(chip, exact=False):
        assert load_model(folder, device="npu").dtype == dtype


@pytest.mark.parametrize("chip", CHIPS)
def test_answers_are_the_cpus(folder: Path, chip: str) -> None:
    """The public face: messages and text, drafters, modes, logprobs, a batch."""

    def answers(device: str) -> list[Any]:
        llm = LLM(folder, dtype="float32", device=device, progress=False, kv_memory="64MiB")
        sampling = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=2)
        prompts: list[Prompt] = ["one two three one two", [5, 6, 7, 5, 6], "x" * 40]
        out = []
        for mode, speculation in (("deep", "suffix"), ("fast", "off"), ("fast", "self")):
            out += llm.generate(
                prompts, sampling, mode=mode, speculation=speculation, progress=False
            )
        seeded = SamplingParams(max_tokens=12, temperature=0.9, seed=7, n=2)
        out.append(llm.generate("one two", seeded, speculation="suffix"))
        if device == "npu":
            assert isinstance(llm.model, PagedDecoder) and llm.model.recorder.replays > 0
        llm.close()
        return out

    cpu = answers("cpu")
    with simulated(chip):
        npu = answers("npu")
    for ours, theirs in zip(npu, cpu, strict=True):
        for mine, wanted in zip(ours.choices, theirs.choices, strict=True):
            assert mine.token_ids == wanted.token_ids and mine.text == wanted.text
            for a, b in zip(mine.logprobs or (), wanted.logprobs or (), strict=True):
                assert a == pytest.approx(b, abs=1e-3)


@pytest.mark.parametrize(("chip", "kind"), list(zip(CHIPS, ("moge", "dense"))))
def test_a_chips_own_dtype_errs_as_rounding_does(tmp_path: Path, chip: str, kind: str) -> None:
    """No further from float32 than plain torch in the same dtype, and where the best token differs the
    two best were closer than that."""
    write = write_moge if kind == "moge" else write_dense
    folder = write(tmp_path, num_attention_heads=4, head_dim=128)
    tokens = texts.tokens_of(150)
    exact = texts.logits(load_model(folder, "float32", "cpu"), tokens)
    dtype = "float16" if chip == CHIPS[1] else "bfloat16"
    config = ModelConfig.from_folder(folder)
    with Checkpoint.open(folder, config).reader(progress=False) as read:
        weights = Weights(config, ReferenceOps(), DTYPES[dtype], torch.device("cpu"), read)
    plain = texts.logits(Decoder(weights), tokens)
    with simulated(chip, exact=False):
        model = load_model(folder, dtype, "npu")
        found = texts.logits(model, tokens, [130, *[1] * 12, 8])
    error, allowed = (found - exact).abs(), (plain - exact).abs()
    assert error.mean() < 2 * allowed.mean()
    best = exact.topk(2).values
    differs = found.argmax(-1) != exact.argmax(-1)
    gaps = (best[:, 0] - best[:, 1])[differs]
    # routing may part where two experts of a group are as near: such rows are off as a whole
    assert (gaps < 2 * error[differs].amax(-1)).all()
    assert differs.float().mean() < 0.15
