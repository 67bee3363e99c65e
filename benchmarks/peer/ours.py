"""fastslow, through its public API, as one of the engines compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from peer.child import Run, serve

import fastslow
from fastslow import LLM, SamplingParams, Speculation
from fastslow.engine.model.config import ModelConfig
from fastslow.models.locate import resolve_model
from fastslow.tools.tune.sample import seconds_of


def options_of(format: str) -> dict[str, Any]:
    """Arguments of `LLM` for a dtype, a quantization or "auto"; "+kv8" after it keeps keys and values in int8."""
    if format.endswith("+kv8"):
        return {**options_of(format.removesuffix("+kv8")), "kv_dtype": "int8"}
    if format in ("int8", "int4"):
        return {"quantization": format}
    return {} if format == "auto" else {"dtype": format}


class Fastslow:
    """`format`: a dtype, the name of a quantization, or "file": the GGUF as it is."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(options["threads"])
        format = options["format"]
        model = options["file"] if format == "file" else options["model"]
        config = ModelConfig.from_folder(resolve_model(model))
        # As much room as every other engine gets, so that their memory can be compared.
        # A recurrent model also gets places for running states, which may be half of it.
        kept = torch.float32 if format == "float32" else torch.bfloat16
        layout = config.state_layout
        places = 2 * options["requests"] * layout.request_bytes(kept)
        self.llm = LLM(
            model,
            max_model_len=options["context"],
            prompt_rows=options["room"],  # the others read all prompts before the time that counts
            kv_memory=options["room"] * layout.token_bytes(kept) + places,
            progress=False,
            **({} if format == "file" else options_of(format)),
        )
        return {
            "versions": {"fastslow": fastslow.__version__, "torch": torch.__version__},
            # The reference path, of machines without a compiler, does not count its bytes.
            "bytes": self.llm.model.bytes_for() if hasattr(self.llm.model, "bytes_for") else None,
        }

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        return self._run(prompts, "off", SamplingParams(max_tokens=tokens, ignore_eos=True))

    def prefill(self, prompt: Sequence[int]) -> float:
        started = time.perf_counter()
        self.llm.generate(list(prompt), SamplingParams(max_tokens=1), speculation="off")
        return time.perf_counter() - started

    def answer(self, prompt: Sequence[int], tokens: int, nodes: int) -> Run:
        wish = Speculation(drafter="ngram", nodes=nodes) if nodes else "off"
        return self._run([prompt], wish, SamplingParams(max_tokens=tokens))

    def _run(
        self, prompts: Sequence[Sequence[int]], wish: str | Speculation, sampling: SamplingParams
    ) -> Run:
        batch = [list(prompt) for prompt in prompts]
        outputs = self.llm.generate(batch, sampling, speculation=wish, progress=False)
        seconds = seconds_of([output.metrics for output in outputs])
        return Run([output.token_ids for output in outputs], seconds)


if __name__ == "__main__":
    serve(Fastslow())
