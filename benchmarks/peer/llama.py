"""llama.cpp, as one of the engines compared.

Plain decoding and prompts run through the C API with a numpy argmax, the quickest greedy loop that its Python package
allows; prompt lookup exists in the package's `Llama` only, so there both plain and lookup decoding run through that.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from peer.child import Run, file_of, serve

FILE_TYPES = {
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
}
WARNING = 3  # of llama.cpp's log levels; below it, a context describes itself at length


def _log(level: int, text: bytes, _data: Any) -> None:
    if level >= WARNING:
        sys.stderr.buffer.write(text)
        sys.stderr.flush()


_LOG = llama_cpp.llama_log_callback(_log)


class Context:
    """A llama.cpp context for `sequences` texts of `length` tokens each."""

    def __init__(self, model: Any, length: int, sequences: int, threads: int) -> None:
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = length * sequences
        options.n_batch = options.n_ubatch = 512
        options.n_seq_max = sequences
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise RuntimeError("llama.cpp made no context")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def step(self, texts: Sequence[Sequence[int]], start: int, first: int = 0) -> list[int]:
        """Run the tokens of sequences from `first` at positions from `start`; the best next token of each."""
        batch, row, wanted = self._batch, 0, []
        for sequence, text in enumerate(texts, first):
            for place, token in enumerate(text):
                batch.token[row] = token
                batch.pos[row] = start + place
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = sequence
                batch.logits[row] = place == len(text) - 1
                row += 1
            wanted.append(row - 1)
        batch.n_tokens = row
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gave {code}")
        logits = (llama_cpp.llama_get_logits_ith(self._context, row) for row in wanted)
        arrays = (np.ctypeslib.as_array(some, shape=(self._vocabulary,)) for some in logits)
        return [int(array.argmax()) for array in arrays]


class LlamaCpp:
    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        self._options = options
        llama_cpp.llama_log_set(_LOG, ctypes.c_void_p(0))
        self._file = file_of(options["file"], options["format"], options["cache"])
        if not self._file.exists():
            _make(Path(options["file"]), self._file, FILE_TYPES[options["format"]])
        usual = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(self._file).encode(), usual)
        if not self._model:
            raise RuntimeError(f"llama.cpp did not load {self._file}")
        self._contexts: dict[int, Context] = {}
        self._pythonic: dict[int, Any] = {}
        return {"versions": {"llama-cpp-python": llama_cpp.__version__, "numpy": np.__version__}}

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        context = self._context(len(prompts))
        some = 512 // len(prompts[0])  # of a step
        parts = range(0, len(prompts), some)
        best = [token for i in parts for token in context.step(prompts[i : i + some], 0, i)]
        answers = [[token] for token in best]
        started = time.perf_counter()
        for position in range(len(prompts[0]), len(prompts[0]) + tokens - 1):
            best = context.step([[token] for token in best], position)
            for answer, token in zip(answers, best):
                answer.append(token)
        return Run(answers, time.perf_counter() - started)

    def prefill(self, prompt: Sequence[int]) -> float:
        context = self._context(1)
        started = time.perf_counter()
        for start in range(0, len(prompt), 512):
            context.step([prompt[start : start + 512]], start)
        return time.perf_counter() - started

    def answer(self, prompt: Sequence[int], tokens: int, nodes: int) -> Run:
        if nodes not in self._pythonic:
            drafter = LlamaPromptLookupDecoding(max_ngram_size=3, num_pred_tokens=nodes)
            threads = self._options["threads"]
            self._pythonic[nodes] = llama_cpp.Llama(
                str(self._file), n_ctx=self._options["context"], n_threads=threads,
                n_threads_batch=threads, draft_model=drafter if nodes else None, verbose=False,
            )  # fmt: skip
        llm = self._pythonic[nodes]
        llm.reset()
        answer, times = [], []
        for token in itertools.islice(llm.generate(prompt, temp=0.0, repeat_penalty=1.0), tokens):
            answer.append(token)
            times.append(time.perf_counter())
            if token == llm.token_eos():
                break
        return Run([answer], times[-1] - times[0])

    def _context(self, sequences: int) -> Context:
        if sequences not in self._contexts:
            most = self._options["room"] if sequences > 1 else self._options["context"]
            kind = (most // sequences, sequences, self._options["threads"])
            self._contexts[sequences] = Context(self._model, *kind)
        context = self._contexts[sequences]
        context.clear()
        return context


def _make(file: Path, made: Path, type: int) -> None:
    """Write the file's weights in another format, rounded from its own: all engines start from the same numbers."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = type
    options.allow_requantize = True
    options.nthread = 1
    unfinished = made.with_suffix(".part")
    code = llama_cpp.llama_model_quantize(
        str(file).encode(), str(unfinished).encode(), ctypes.byref(options)
    )
    if code:
        raise RuntimeError(f"llama_model_quantize gave {code} for {made.name}")
    unfinished.rename(made)


if __name__ == "__main__":
    serve(LlamaCpp())
