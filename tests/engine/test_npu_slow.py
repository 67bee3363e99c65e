"""The built-in model on simulated NPUs: narrow heads, real weights, every kind of drafter."""

from __future__ import annotations

import pytest
from npu_tools import CHIPS, simulated

from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM

PROMPTS = [
    "The capital of France is",
    "def add(a, b):\n    return",
    "one two three one two three one",
]


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_smollm2_moge(chip: str) -> None:
    def answers(device: str) -> list[list[int]]:
        llm = LLM(
            "smollm2-moge", dtype="float32", device=device, kv_memory="256MiB", max_model_len=512
        )
        sampling = SamplingParams(max_tokens=24, ignore_eos=True)
        found = []
        for mode in ("deep", "fast"):
            for speculation in ("off", "suffix", "self", "head"):
                out = llm.generate(PROMPTS, sampling, mode=mode, speculation=speculation)
                found += [answer.token_ids for answer in out]
        if isinstance(llm.model, PagedDecoder):
            assert llm.model.recorder.replays > 20
        llm.close()
        return found

    expected = answers("cpu")
    with simulated(chip):
        assert answers("npu") == expected
