"""fastslow, through its public API, as one of the engines compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from peer.child import Run, serve
from peer.formats import kv_dtype, options_of

import fastslow
from fastslow import LLM, SamplingParams, Speculation
from fastslow.engine.model.config import ModelConfig
from fastslow.models.locate import resolve_model


class Fastslow:
    """`format`: a dtype, or the name of a quantization."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(options["threads"])
        format = options["format"]
        config = ModelConfig.from_folder(resolve_model(options["model"]))
        # As much room as every other engine gets, so that their memory can be compared.
        room = options["room"] * config.kv_bytes_per_token(kv_dtype(format))
        self.llm = LLM(
            options["model"],
            max_model_len=options["context"],
            kv_memory=room,
            progress=False,
            **options_of(format),
        )
        return {
            "versions": {"fastslow": fastslow.__version__, "torch": torch.__version__},
            # The reference path, of machines without a compiler, does not count its bytes.
            "bytes": self.llm.model.bytes_for() if hasattr(self.llm.model, "bytes_for") else None,
        }

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        batch = [list(prompt) for prompt in prompts]
        outputs = self.llm.generate(batch, sampling, speculation="off", progress=False)
        metrics = [output.metrics for output in outputs]
        ends = [m.ttft + m.tpot * (m.tokens - 1) for m in metrics]
        return Run(
            [output.token_ids for output in outputs], max(ends) - min(m.ttft for m in metrics)
        )

    def prefill(self, prompt: Sequence[int]) -> float:
        sampling = SamplingParams(max_tokens=1, ignore_eos=True)
        started = time.perf_counter()
        self.llm.generate(list(prompt), sampling, speculation="off")
        return time.perf_counter() - started

    def answer(self, prompt: Sequence[int], tokens: int, nodes: int) -> Run:
        wish = Speculation(drafter="ngram", nodes=nodes) if nodes else "off"
        sampling = SamplingParams(max_tokens=tokens)
        output = self.llm.generate(list(prompt), sampling, speculation=wish)
        metrics = output.metrics
        return Run([output.token_ids], metrics.tpot * (metrics.tokens - 1))


if __name__ == "__main__":
    serve(Fastslow())
