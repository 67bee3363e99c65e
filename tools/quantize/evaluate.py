"""What quantising changed, on texts that calibration did not see."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.params import SamplingParams
from fastslow.engine.types import Rows, Segment
from fastslow.llm import LLM

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PAGE = 16


@dataclass(frozen=True, slots=True)
class Compared:
    """Two models on the same texts.

    tokens: whose probability was looked at. perplexity: of the source, and of the quantised model.
    kl: mean of KL(source || quantised), nats a token. agreement: share of places where both think the
    same token likeliest.
    """

    tokens: int
    source_perplexity: float
    perplexity: float
    kl: float
    agreement: float

    @property
    def ratio(self) -> float:
        """Of the perplexities."""
        return self.perplexity / self.source_perplexity


@torch.inference_mode()
def compare(
    source: Model,
    quantised: Model,
    texts: Sequence[Sequence[int]],
    note: Callable[[int], None] = lambda done: None,
) -> Compared:
    """Run the texts through both. ValueError without a text of at least 2 tokens."""
    nats = torch.zeros(3, dtype=torch.float64)  # source, quantised, KL
    tokens = same = places = 0
    for done, text in enumerate(texts, 1):
        if len(text) < 2:
            continue
        a_TV, b_TV = (logits(m, text).double().log_softmax(-1) for m in (source, quantised))
        said = torch.tensor(text[1:])[:, None]
        for i, law in enumerate((a_TV, b_TV)):
            nats[i] -= law[:-1].gather(1, said).sum()
        nats[2] += (a_TV.exp() * (a_TV - b_TV)).sum()
        same += int((a_TV.argmax(-1) == b_TV.argmax(-1)).sum())
        tokens += len(text) - 1
        places += len(text)
        note(done)
    if not tokens:
        raise ValueError("evaluation needs a text of at least 2 tokens")
    first, second = (nats[:2] / tokens).tolist()
    return Compared(
        tokens, math.exp(first), math.exp(second), float(nats[2]) / places, same / places
    )


def logits(model: Model, text: Sequence[int]) -> Tensor:
    """[T, V] of a text alone."""
    count = len(text)
    kv = kv_cache_for(model, -(-count // PAGE), PAGE)
    places = np.arange(count)
    chain = range(-1, count - 1)
    segment = Segment(list(text), range(count), chain, places, places[:0], None, range(count))
    return model.forward(Rows.of([segment]), kv.storage).logits


def read_tasks(path: Path) -> list[tuple[str, str]]:
    """(prompt, answer) of JSON lines with the fields prompt and answer. ValueError names the line."""
    found = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            found.append((str(record["prompt"]), str(record["answer"])))
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"tasks file {str(path)!r}, line {number}: it must be a JSON object with prompt "
                "and answer"
            ) from None
    if not found:
        raise ValueError(f"tasks file {str(path)!r} has no task")
    return found


def accuracy(llm: LLM, tasks: Sequence[tuple[str, str]], tokens: int) -> float:
    """Share of tasks that greedy answers of at most so many tokens solve, each put as a chat."""
    chats = [[{"role": "user", "content": prompt}] for prompt, _ in tasks]
    outputs = llm.generate(chats, SamplingParams(max_tokens=tokens, temperature=0.0))
    pairs: Iterable[tuple[str, str]] = zip((o.text for o in outputs), (a for _, a in tasks))
    return sum(solves(text, answer) for text, answer in pairs) / len(tasks)


def solves(text: str, answer: str) -> bool:
    """Whether the last number of a text is the answer; whether it ends so, where that is none."""
    if NUMBER.fullmatch(answer.strip()):
        numbers = NUMBER.findall(text)
        return bool(numbers) and float(numbers[-1]) == float(answer)
    return text.strip().rstrip(".!").casefold().endswith(answer.strip().casefold())
