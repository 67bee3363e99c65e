"""Comparison of a checkpoint with its quantised one, on texts that calibration did not see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from rich.table import Table

from fastslow.engine.kv.budget import format_bytes
from fastslow.engine.model.base import Model
from fastslow.tools.forward import forward_texts
from fastslow.tools.quantize.quantize import QuantizedCheckpoint

FILE = "quantization_report.json"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same texts."""

    tokens: int  # whose probability was looked at
    source_perplexity: float
    perplexity: float  # of the quantised model
    kl: float  # mean of KL(source || quantised), nats a token
    agreement: float  # share of places where both think the same token likeliest


@torch.inference_mode()
def compare(source: Model, quantised: Model, texts: Sequence[Sequence[int]]) -> Comparison:
    """Run the texts through both. ValueError without a text of at least 2 tokens."""
    nats = torch.zeros(3, dtype=torch.float64)  # source, quantised, KL
    tokens = same = places = 0
    for text in texts:
        if len(text) < 2:
            continue
        logits = (forward_texts(model, [text]).logits for model in (source, quantised))
        a_TV, b_TV = (each_TV.double().log_softmax(-1) for each_TV in logits)
        following = torch.tensor(text[1:])[:, None]
        for i, logprobs_TV in enumerate((a_TV, b_TV)):
            nats[i] -= logprobs_TV[:-1].gather(1, following).sum()
        nats[2] += (a_TV.exp() * (a_TV - b_TV)).sum()
        same += int((a_TV.argmax(-1) == b_TV.argmax(-1)).sum())
        tokens += len(text) - 1
        places += len(text)
    if not tokens:
        raise ValueError("evaluation needs a text of at least 2 tokens")
    first, second = (nats[:2] / tokens).tolist()
    kl = float(nats[2]) / places
    return Comparison(tokens, math.exp(first), math.exp(second), kl, same / places)


def record(
    made: QuantizedCheckpoint, compared: Comparison | None, memory: list[int]
) -> dict[str, Any]:
    """For programs: bytes, shares, nats, and the drift of each layer; empty parts were not measured."""
    return {
        "source_bytes": made.source_bytes,
        "bytes": made.nbytes,
        "memory": memory,
        "calibration": {"texts": len(made.texts), "tokens": sum(map(len, made.texts))},
        "compared": None if compared is None else asdict(compared),
        "drift": made.drifts,
    }


def table_of(facts: dict[str, Any]) -> Table:
    """Return a table of what `record` gave, for people; the drift of each layer is in the file."""
    table = Table("", "source", "W8A8", "ratio")
    for name, sizes in (
        ("weights on disk", (facts["source_bytes"], facts["bytes"])),
        ("in memory", facts["memory"]),
    ):
        if sizes:
            table.add_row(name, *map(format_bytes, sizes), f"{sizes[1] / sizes[0]:.4f}")
    if (found := facts["compared"]) is not None:
        both = found["source_perplexity"], found["perplexity"]
        table.add_row("perplexity", *(f"{x:.4f}" for x in both), f"{both[1] / both[0]:.4f}")
        table.add_row(f"KL, {found['tokens']} tokens", "", f"{found['kl']:.5f} nats")
        table.add_row("same likeliest token", "", f"{found['agreement']:.2%}")
    table.add_row("calibration", "", f"{facts['calibration']['tokens']} tokens")
    drifts = facts["drift"]
    table.add_row("drift of a layer", "", f"{fmean(drifts):.4f} mean, {max(drifts):.4f} worst")
    return table
