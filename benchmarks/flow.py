"""Tokens a second of a steady flow: so many requests run at once, and where one ends the next begins.

Prompts are read before the clock runs (prefix cache), by the same setting: a drafter that looks at
text sees it, as it does in a prompt's first answer, if it can keep all of them until they are asked
for (a head 16,384 rows). A rate is taken from the first token of all to
the moment when the last request begins, so that all places are taken; `whole` is that of the whole
run, in whose last part fewer and fewer requests run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.progress import track

from fastslow import LLM, SamplingParams, Speculation
from fastslow.engine.host.machine import Watch
from fastslow.output import Metrics
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune.candidates import PLAIN, label
from fastslow.tools.tune.runner import shuffled

WARM = 8  # tokens
KV = (
    "2GiB"  # a share of memory would hold no more texts than run at once, and prompts be read again
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of all prompts. rate, whole: tokens a second. others: share of the machine that other
    processes took."""

    rate: float
    whole: float
    tokens_per_step: float
    others: float | None


def run_of(metrics: Sequence[Metrics], others: float | None = None) -> Run:
    """What the answers say; they were all asked for at the same time.

    Raises:
        ValueError: they all began at once, so that nothing flowed.
    """
    ends = [m.ttft + m.tpot * (m.tokens - 1) for m in metrics]
    first, last = min(m.ttft for m in metrics), max(m.ttft for m in metrics)
    if last <= first:
        raise ValueError("all answers began at once: give more prompts than run together")
    made = sum(_made(m, last) for m in metrics)
    tokens = sum(m.tokens for m in metrics)
    steps = sum(m.steps for m in metrics)
    return Run(made / (last - first), tokens / (max(ends) - first), tokens / max(steps, 1), others)


def _made(m: Metrics, until: float) -> float:
    """Tokens of an answer up to a time after the call."""
    if m.tpot <= 0:
        return float(m.tokens if m.ttft < until else 0)
    return min(max((until - m.ttft) / m.tpot, 0.0), float(m.tokens))


class Flow:
    """Runs settings in turns on one model, `batch` requests at once.

    Args:
        model: a folder or a built-in name.
        batch: requests that run together; there are at least twice as many prompts.
        prompts: answered in every run.
        sampling: of all answers.
        options: of the model (dtype, quantization).
    """

    def __init__(
        self,
        model: str,
        batch: int,
        prompts: Sequence[Conversation],
        sampling: SamplingParams,
        **options: Any,
    ) -> None:
        if len(prompts) < 2 * batch:
            raise ValueError(
                f"batch {batch} needs at least {2 * batch} prompts, got {len(prompts)}"
            )
        self._model, self._batch, self._options = model, batch, options
        self._prompts, self._sampling = list(prompts), sampling

    def measure(self, settings: Sequence[Speculation], repeat: int) -> dict[Speculation, list[Run]]:
        """Every setting and plain decoding `repeat` times, each time in another order."""
        every = [PLAIN, *settings]
        found: dict[Speculation, list[Run]] = {setting: [] for setting in every}
        jobs = [(turn, setting) for turn in range(repeat) for setting in shuffled(every, turn)]
        options = {**self._options, "max_running": self._batch, "remember": False}
        with LLM(self._model, kv_memory=KV, **options) as llm:
            read = self._sampling.model_copy(update={"max_tokens": 1})
            few = self._sampling.model_copy(update={"max_tokens": WARM})
            for setting in every:
                llm.generate(self._prompts[:1], few, speculation=setting, progress=False)
            for _, setting in track(jobs, f"batch {self._batch}"):
                llm.forget_prompts()  # else only the first setting's drafter would see them
                llm.generate(self._prompts, read, speculation=setting, progress=False)
                watch = Watch()
                outputs = llm.generate(
                    self._prompts, self._sampling, speculation=setting, progress=False
                )
                run = run_of([output.metrics for output in outputs], watch.others())
                found[setting].append(run)
        return found


def times_plain(found: dict[Speculation, list[Run]], setting: Speculation) -> float:
    """A setting's rate over plain decoding's in the same turn; the median over turns."""
    return median(a.rate / b.rate for a, b in zip(found[setting], found[PLAIN], strict=True))


def record(found: dict[Speculation, list[Run]]) -> list[dict[str, Any]]:
    """For a JSON file."""
    return [
        {
            "label": label(setting),
            "speculation": setting.model_dump(mode="json"),
            "times_plain": times_plain(found, setting),
            "runs": [asdict(run) for run in runs],
        }
        for setting, runs in found.items()
    ]
