"""What quantising changed, on texts that calibration did not see: measured, and shown to people and programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from rich.table import Table

from fastslow.engine.kv.budget import format_bytes
from fastslow.engine.model.base import Model
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.tools.forward import forward_texts
from fastslow.tools.quantize.quantize import QuantizedCheckpoint
from fastslow.tools.quantize.quantize_layer import Quantised
from fastslow.tools.tasks import Task

FILE = "quantization_report.json"


@dataclass(frozen=True, slots=True)
class Comparison:
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
        """The quotient of the perplexities."""
        return self.perplexity / self.source_perplexity


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
    return Comparison(
        tokens, math.exp(first), math.exp(second), float(nats[2]) / places, same / places
    )


@dataclass(slots=True)
class QuantizeReport:
    """made: the quantisation. compared: with its source, None where nobody looked. memory: bytes of the
    weights of source and result where they run, None where that is not known. accuracy: of source and
    result on graded tasks.
    """

    made: QuantizedCheckpoint
    least: int
    compared: Comparison | None = None
    memory: tuple[int, int] | None = None
    accuracy: tuple[float, float] | None = None

    def compare_models(
        self,
        source: LLM,
        quantised: LLM,
        texts: Sequence[Sequence[int]],
        tasks: Sequence[Task] | None,
        task_tokens: int,
    ) -> None:
        """Fill in what both models tell: memory, texts (if any), and the share of tasks that greedy
        answers of at most `task_tokens` tokens solve."""
        llms = (source, quantised)
        sizes = [getattr(llm.model, "weight_bytes", 0) for llm in llms]
        self.memory = (sizes[0], sizes[1]) if all(sizes) else None
        if texts:
            self.compared = compare(source.model, quantised.model, texts)
        if tasks is not None:
            prompts = [task.prompt for task in tasks]
            sampling = SamplingParams(max_tokens=task_tokens, temperature=0.0)
            outputs = [llm.generate(prompts, sampling) for llm in llms]
            right = [fmean(task.right(o.text) for task, o in zip(tasks, outs)) for outs in outputs]
            self.accuracy = (right[0], right[1])

    def record(self) -> dict[str, Any]:
        """For programs: bytes, shares, nats."""
        made = self.made
        return {
            "source_bytes": made.source_bytes,
            "bytes": made.nbytes,
            "memory": self.memory,
            "calibration": {
                "texts": len(made.calibration.texts),
                "tokens": made.calibration.tokens,
                "least": self.least,
                "starved": made.calibration.starved(self.least),
            },
            "compared": None if self.compared is None else asdict(self.compared),
            "accuracy": self.accuracy,
            "layers": [_layer(layer) for layer in made.layers],
        }

    def tables(self) -> Iterator[Table]:
        """For people."""
        yield self._whole()
        yield self._layers()

    def _whole(self) -> Table:
        made, found = self.made, self.compared
        table = Table("", "source", "W8A8", "ratio")

        def row(name: str, *cells: str, ratio: float | None = None) -> None:
            table.add_row(name, *cells, "" if ratio is None else f"{ratio:.4f}")

        sizes = (made.source_bytes, made.nbytes)
        row("weights on disk", *map(format_bytes, sizes), ratio=sizes[1] / sizes[0])
        if self.memory is not None:
            share = self.memory[1] / self.memory[0]
            row("in memory", *map(format_bytes, self.memory), ratio=share)
        if found is not None:
            both = (found.source_perplexity, found.perplexity)
            row("perplexity", *(f"{x:.4f}" for x in both), ratio=found.ratio)
            row(f"KL, {found.tokens} tokens", "", f"{found.kl:.5f} nats")
            row("same likeliest token", "", f"{found.agreement:.2%}")
        if self.accuracy is not None:
            row("graded tasks solved", *(f"{x:.2%}" for x in self.accuracy))
        starved = made.calibration.starved(self.least)
        row("calibration", "", f"{made.calibration.tokens} tokens")
        row(f"experts below {self.least} tokens", "", str(len(starved)))
        return table

    def _layers(self) -> Table:
        table = Table(
            "layer", "drift", "attention", "experts", "worst expert", "rows", "same experts"
        )
        for n, layer in enumerate(self.made.layers):
            attention = [e for name, e in layer.errors.items() if name.startswith("self_attn.")]
            experts = expert_errors(layer)
            cells = [f"{layer.drift:.4f}", f"{fmean(attention):.4f}"]
            if experts:
                worst = max(experts, key=experts.__getitem__)
                cells += [f"{fmean(experts.values()):.4f}", f"{worst}: {experts[worst]:.4f}"]
                cells.append(f"{min(layer.rows)}..{max(layer.rows)}")
            else:
                mlp = [e for name, e in layer.errors.items() if name.startswith("mlp.")]
                cells += [f"{fmean(mlp):.4f}", "", ""]
            if (found := layer.alignment) is not None:
                cells.append(f"{found.before:.2%} -> {found.after:.2%}")
            table.add_row(str(n), *cells)
        return table


def expert_errors(layer: Quantised) -> dict[int, float]:
    """By expert that saw rows: the relative error of its products, root mean square."""
    squares: dict[int, list[float]] = {}
    for name, error in layer.errors.items():
        parts = name.split(".")
        if parts[1:2] == ["experts"]:
            squares.setdefault(int(parts[2]), []).append(error**2)
    return {expert: fmean(some) ** 0.5 for expert, some in sorted(squares.items())}


def _layer(layer: Quantised) -> dict[str, Any]:
    found = layer.alignment
    return {
        "drift": layer.drift,
        "errors": {n: e for n, e in layer.errors.items() if ".experts." not in n},
        "expert_errors": expert_errors(layer),
        "expert_rows": layer.rows,
        "smoothing": {n: s for n, s in layer.strengths.items() if ".experts." not in n},
        "router": None
        if found is None
        else {"before": found.before, "after": found.after, "ridge": found.ridge},
    }
