"""vLLM's CPU build, compiled as it is by default, as one of the engines compared."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from peer.child import Run, serve

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process, whose memory is measured
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB, more than any cell needs

import vllm


class Vllm:
    """It reads the folder of the built-in model, and has no prompt lookup of GGUF files here."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        self._llm = vllm.LLM(
            options["folder"], dtype=options["format"], max_model_len=options["context"],
            enable_prefix_caching=False, disable_log_stats=False,
        )  # fmt: skip
        return {"versions": {"vllm": vllm.__version__}}

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        return self._run(prompts, tokens, ignore_eos=True)

    def prefill(self, prompt: Sequence[int]) -> float:
        started = time.perf_counter()
        self._run([prompt], 1, ignore_eos=True)
        return time.perf_counter() - started

    def answer(self, prompt: Sequence[int], tokens: int, nodes: int) -> Run:
        if nodes:
            raise NotImplementedError("prompt lookup of vLLM is not measured")
        return self._run([prompt], tokens, ignore_eos=False)

    def _run(self, prompts: Sequence[Sequence[int]], tokens: int, ignore_eos: bool) -> Run:
        settings = vllm.SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=ignore_eos, detokenize=False
        )
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        made = self._llm.generate(asked, settings, use_tqdm=False)
        times = [output.metrics for output in made]
        seconds = max(t.last_token_ts for t in times) - min(t.first_token_ts for t in times)
        return Run([list(output.outputs[0].token_ids) for output in made], seconds)


if __name__ == "__main__":
    serve(Vllm())
