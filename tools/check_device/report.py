"""What a check of a device found, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastslow.engine.backends.cpu import library
from fastslow.tools.machine import circumstances

SLACK = {torch.bfloat16: 0.25, torch.float16: 0.03, torch.float32: 1e-3}
"""By how much logits of one dtype may differ between two right ways to compute them. bfloat16 has a step
of 0.125 between 16 and 32, where logits lie, and float16 one of 0.016."""


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """What is checked.

    Attributes:
        device: as `LLM(device=...)` takes it.
        place: torch's name of it.
        dtype: of the model; "auto" is the device's own choice.
        quick: few texts and small shapes, for tests.
        folder: for what the checks write; it goes with them.
        say: (share of this part that is done, what goes on).
    """

    device: str
    place: torch.device
    dtype: str
    quick: bool
    folder: Path
    say: Callable[[float, str], None]

    def slack(self, dtype: torch.dtype) -> float:
        """How close two best logits are a near tie. The CPU's kernels promise the same bits."""
        same = self.device == "cpu" and library.available()
        return 0.0 if same else SLACK[dtype]


@dataclass(slots=True)
class Finding:
    """What one part found.

    Attributes:
        name: of the part.
        passed: None: it does not apply to this device, which is no fault.
        lines: for people.
        figures: for programs.
        advice: what to do next where it failed.
    """

    name: str
    passed: bool | None = True
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    advice: str = ""
    seconds: float = 0.0

    def text(self) -> str:
        word = {True: "passed", False: "FAILED", None: "does not apply"}[self.passed]
        shown = [f"{self.name}: {word} ({self.seconds:.1f} s)", *(f"  {x}" for x in self.lines)]
        if self.passed is False and self.advice:
            shown.append(f"  next: {self.advice}")
        return "\n".join(shown)

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        every = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return every | {"advice": self.advice if self.passed is False else ""}


def report_of(plan: CheckPlan, findings: list[Finding], complete: bool) -> dict[str, Any]:
    """All of it as plain JSON values."""
    return {
        **circumstances(),
        "device": plan.device,
        "dtype": plan.dtype,
        "quick": plan.quick,
        "complete": complete,
        "passed": complete and all(x.passed is not False for x in findings),
        "parts": [x.record() for x in findings],
    }
