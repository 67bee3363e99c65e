"""Plan of what is checked on a device, and the finding of each part of the check."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastslow.engine.backends.cpu import library

SLACK = {torch.bfloat16: 0.25, torch.float16: 0.03, torch.float32: 1e-3}
"""By how much logits of one dtype may differ between two right ways to compute them. bfloat16 has a step
of 0.125 between 16 and 32, where logits lie, and float16 one of 0.016."""


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """Plan of a check: the device, the dtype, and how much."""

    device: str  # as `LLM(device=...)` takes it
    dtype: str  # of the model
    quick: bool  # few texts
    folder: Path  # for what the checks write; it goes with them
    model: str | None = None  # whose answers are compared; None = the shipped one's
    prompts: Path | None = None  # that it answers; None = those shipped

    def slack(self, dtype: torch.dtype) -> float:
        """Return how close two best logits are a near tie: 0 for the CPU's kernels, which promise the same bits."""
        same = self.device == "cpu" and library.available()
        return 0.0 if same else SLACK[dtype]


@dataclass(slots=True)
class Finding:
    """Result of one part of the check."""

    name: str
    passed: bool = True
    lines: list[str] = field(default_factory=list)  # for people
    figures: dict[str, Any] = field(default_factory=dict)  # for programs
    advice: str = ""  # what to do next where it failed
    seconds: float = 0.0

    def text(self) -> str:
        word = "passed" if self.passed else "FAILED"
        shown = [f"{self.name}: {word} ({self.seconds:.1f} s)", *(f"  {x}" for x in self.lines)]
        return "\n".join(shown if self.passed else [*shown, f"  next: {self.advice}"])
