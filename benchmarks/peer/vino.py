"""OpenVINO GenAI: its LLMPipeline on the GGUF file, as one of the engines compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
import openvino_genai
from peer.child import Run, file_of, serve


class OpenVino:
    """Prompt lookup needs another pipeline, which is made when it is first asked for."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        self._file = file_of(options["file"], options["format"], options["cache"])
        if not self._file.exists():
            raise FileNotFoundError(f"{self._file.name} is not made yet: run llama.cpp's first")
        self._threads = options["threads"]
        self._plain = self._pipeline()
        self._lookup: Any = None
        names = (openvino, openvino_genai)
        return {"versions": {module.__name__: module.get_version() for module in names}}

    def _pipeline(self, **options: Any) -> Any:
        return openvino_genai.LLMPipeline(
            str(self._file), "CPU", INFERENCE_NUM_THREADS=self._threads, **options
        )

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        return self._run(self._plain, prompts, _settings(tokens, ignore_eos=True))

    def prefill(self, prompt: Sequence[int]) -> float:
        settings, inputs = _settings(1, ignore_eos=True), _inputs([prompt])
        started = time.perf_counter()
        self._plain.generate(inputs, settings)
        return time.perf_counter() - started

    def answer(self, prompt: Sequence[int], tokens: int, nodes: int) -> Run:
        settings = _settings(tokens, ignore_eos=False)
        if not nodes:
            return self._run(self._plain, [prompt], settings)
        if self._lookup is None:
            self._lookup = self._pipeline(prompt_lookup=True)
        settings.num_assistant_tokens = nodes
        settings.max_ngram_size = 3
        return self._run(self._lookup, [prompt], settings)

    def _run(self, pipeline: Any, prompts: Sequence[Sequence[int]], settings: Any) -> Run:
        result = pipeline.generate(_inputs(prompts), settings)
        times = result.perf_metrics.raw_metrics.m_new_token_times  # milliseconds
        tokens = [list(map(int, answer)) for answer in result.tokens]
        return Run(tokens, (times[-1] - times[0]) / 1e3)


def _settings(tokens: int, ignore_eos: bool) -> Any:
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens, settings.ignore_eos, settings.do_sample = tokens, ignore_eos, False
    return settings


def _inputs(prompts: Sequence[Sequence[int]]) -> Any:
    """Prompts of one length, which need no padding."""
    ids = np.array(prompts, dtype=np.int64)
    return openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))


if __name__ == "__main__":
    serve(OpenVino())
