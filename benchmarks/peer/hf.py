"""transformers, eager, as one of the engines compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from peer.child import Run, serve


class TokenTimes:
    """A streamer that notes when tokens come; the prompt is handed over before them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def put(self, value: Any) -> None:
        self.seconds.append(time.perf_counter())

    def end(self) -> None:
        pass


class Transformers:
    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(options["threads"])
        kind, dtype = transformers.AutoModelForCausalLM, getattr(torch, options["format"])
        self.model = kind.from_pretrained(options["folder"], dtype=dtype).eval()
        self.eos = self.model.generation_config.eos_token_id
        names = (transformers, torch)
        return {"versions": {module.__name__: module.__version__ for module in names}}

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        return self._run(prompts, tokens, eos_token_id=None)

    def prefill(self, prompt: Sequence[int]) -> float:
        started = time.perf_counter()
        self._run([prompt], 1, eos_token_id=None)
        return time.perf_counter() - started

    def answer(self, prompt: Sequence[int], tokens: int, nodes: int) -> Run:
        lookup = {"prompt_lookup_num_tokens": nodes} if nodes else {}
        return self._run([prompt], tokens, eos_token_id=self.eos, **lookup)

    def _run(self, prompts: Sequence[Sequence[int]], tokens: int, **options: Any) -> Run:
        ids, times = torch.tensor(prompts), TokenTimes()
        with torch.inference_mode():
            made = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                pad_token_id=0, streamer=times, **options,
            )  # fmt: skip
        answers = made[:, ids.shape[1] :].tolist()
        return Run(answers, times.seconds[-1] - times.seconds[1])


if __name__ == "__main__":
    serve(Transformers())
