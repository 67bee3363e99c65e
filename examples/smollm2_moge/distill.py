"""Distillation: the MoGE model learns the next-token probabilities of its dense original."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.engine.host.progress import Report, silent
from smollm2_moge.student import Student

# pairs of a share of the groups and its probability; each row draws one
MIX = (
    (0.0, 0.05), (0.125, 0.03), (0.25, 0.24), (0.375, 0.05), (0.5, 0.18), (0.75, 0.05), (1.0, 0.40),
)  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """Length and rates of a training. The learning rates fall with real time, because the machine may be shared."""

    minutes: float = 80.0
    rate: float = 1.5e-3  # Adam's, of the low-rank deltas
    router_rate: float = 4e-4
    norm_rate: float = 1e-3
    warm_up: int = 20  # steps
    row: int = 288  # tokens
    rows: int = 4  # of a step
    seed: int = 0


class Distiller:
    """Trains a student towards its dense model's next-token probabilities (Hinton et al., arXiv 1503.02531). text:
    int64 [tokens], read in rows from random places."""

    def __init__(self, student: Student, text: Tensor, schedule: Schedule) -> None:
        if len(text) <= schedule.row:
            raise ValueError(f"text must have more than {schedule.row} tokens, got {len(text)}")
        self.student, self.text, self.schedule = student, text, schedule
        self.steps = 0
        self._random = random.Random(schedule.seed)
        kinds: dict[float, list[Tensor]] = {}
        for name, parameter in student.named_parameters():
            if name.endswith("router"):
                rate = schedule.router_rate
            else:
                rate = schedule.rate if name.endswith(("_a", "_b")) else schedule.norm_rate
            kinds.setdefault(rate, []).append(parameter)
        groups = [{"params": params, "lr": rate} for rate, params in kinds.items()]
        self._optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98), foreach=True)
        self._rates = list(kinds)

    def step(self, done: float = 0.0) -> float:
        """Make one update, with `done` of the time over; return the mean divergence in nats per token."""
        plan, teacher = self.schedule, self.student.dense
        starts = [self._random.randrange(len(self.text) - plan.row) for _ in range(plan.rows)]
        tokens = torch.stack([self.text[start : start + plan.row] for start in starts])
        hidden = self.student(tokens, self._groups())
        loss = divergence(hidden @ teacher.head.T, teacher.hidden(tokens) @ teacher.head.T)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        warm = min(1.0, (self.steps + 1) / plan.warm_up)
        factor = warm * max(0.005, 0.5 * (1 + math.cos(math.pi * done)))
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return float(loss.detach())

    def run(self, report: Report = silent) -> None:
        """Trains until the time is over; `report` is that of `progress_bar`."""
        began, done = time.monotonic(), 0.0
        while done < 1:
            loss = self.step(done)
            done = (time.monotonic() - began) / (60 * self.schedule.minutes)
            report(min(1.0, done), f"step {self.steps}, KL {loss:.3f}")

    def _groups(self) -> Tensor:
        """Groups of every token, int64 [rows, row]; mostly one number a row.

        Half of the rows without routed groups get all groups on every second token at random: a
        drafter that runs the shared expert alone reads keys and values that all groups wrote.
        """
        groups, row = self.student.layout.experts.shape[1], self.schedule.row
        shares, chances = zip(*MIX, strict=True)
        drawn = []
        for share in self._random.choices(shares, chances, k=self.schedule.rows):
            count = round(share * groups)
            mixed = count == 0 and self._random.random() < 0.5
            drawn.append(
                torch.randint(0, 2, (row,)) * groups if mixed else torch.full((row,), count)
            )
        return torch.stack(drawn)


def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean KL(theirs || ours) in nats of logits [..., vocabulary]."""
    log_q, log_p = (torch.log_softmax(one.flatten(0, -2).float(), -1) for one in (ours, theirs))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
