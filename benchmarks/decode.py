"""Plain batch-1 decoding against transformers on the same weights, interleaved in one run.

    python benchmarks/decode.py --model PATH [--dtype bfloat16] [--tokens 64] [--repeat 5]

Needs the extra: pip install '.[bench]'. Each repeat runs both engines one after the other; the
figure is the median of the repeats' tokens per second, first token not counted, and of their ratio.
The bandwidth of the moment is probed beside each pair, since a shared machine's wanders.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers

from fastslow import LLM, SamplingParams

PROMPT = "Once upon a time, in a village by the sea, there lived"


def probe_bandwidth() -> float:
    """GB/s of a read far larger than any cache: the best of three sums over 512 MiB."""
    block = torch.ones(2**27, dtype=torch.float32)
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        block.sum()
        best = max(best, block.nbytes / (time.perf_counter() - started) / 1e9)
    return best


def weight_bytes(llm: LLM) -> int:
    """Bytes of weights a dense step reads: everything but an untied embedding's unused rows."""
    config = llm.model.config
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return (config.active_parameters() - embedding) * llm.model.dtype.itemsize


def ours(llm: LLM, tokens: int) -> tuple[float, list[int]]:
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    out = llm.generate(PROMPT, sampling, speculation="off")
    return out.metrics.tokens_per_second, out.token_ids


def theirs(
    model: transformers.PreTrainedModel, ids: list[int], tokens: int
) -> tuple[float, list[int]]:
    prompt = torch.tensor([ids])
    times = []
    for count in (1, tokens):
        started = time.perf_counter()
        with torch.inference_mode():
            made = model.generate(
                prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False
            )
        times.append(time.perf_counter() - started)
    return (tokens - 1) / (times[1] - times[0]), made[0, len(ids) :].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path, help="a dense checkpoint folder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the samples here")
    options = parser.parse_args()

    llm = LLM(options.model, dtype=options.dtype)
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype)
    ).eval()
    ids = llm.generate(PROMPT, SamplingParams(max_tokens=1)).prompt_token_ids
    ours(llm, 8), theirs(peer, ids, 8)  # warm up
    samples = []
    for turn in range(options.repeat):
        bandwidth = probe_bandwidth()
        mine, my_ids = ours(llm, options.tokens)
        other, their_ids = theirs(peer, ids, options.tokens)
        share = mine * weight_bytes(llm) / 1e9 / bandwidth
        same = next((i for i, (a, b) in enumerate(zip(my_ids, their_ids)) if a != b), len(my_ids))
        samples.append({"fastslow": mine, "transformers": other, "bandwidth": bandwidth})
        print(
            f"{turn + 1}: fastslow {mine:6.1f} tok/s, transformers {other:6.1f}, ratio "
            f"{mine / other:.2f}; {bandwidth:.0f} GB/s, of which {share:.0%} used; "
            f"first {same} tokens the same",
            flush=True,
        )
    middle = {k: statistics.median(s[k] for s in samples) for k in samples[0]}
    ratio = statistics.median(s["fastslow"] / s["transformers"] for s in samples)
    print(
        f"median: fastslow {middle['fastslow']:.1f} tok/s, transformers "
        f"{middle['transformers']:.1f}, ratio {ratio:.2f}"
    )
    if options.json:
        record = {
            "command": " ".join(sys.argv),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "machine": {"processor": platform.processor(), "threads": torch.get_num_threads()},
            "ratio": ratio,
            "samples": samples,
        }
        options.json.write_text(json.dumps(record, indent=2))
    llm.close()


if __name__ == "__main__":
    main()
