"""Distillation: the MoGE model learns the next-token probabilities of its dense original."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor

from fastslow.models.recipe import ExpertLayout
from fastslow.tools.progress import Report, silent
from fastslow.tools.training_state import read_state, write_state
from smollm2_moge.student import Divergence, Student
from smollm2_moge.teacher import POSITIONS, Teacher
from smollm2_moge.texts import Prose, TextWriter


@dataclass(frozen=True)
class Schedule:
    """How long and how to train.

    minutes: minutes of real time, writing of text included; the learning rate falls with this time,
        because the machine may be shared.
    rate: Adam's learning rate of the low-rank deltas; router and norms take `router_rate` and
        `norm_rate`.
    warm_up: steps of linear warm-up.
    row: tokens of a row; rows: rows of a step.
    prose: share of steps on human text.
    visits: times that written rows are visited before more are written.
    written: tokens the dense model writes, in `rounds` rounds of `batch` rows.
    mix: pairs of a share of the groups and its probability; each row draws one.
    """

    minutes: float = 80.0
    rate: float = 1.5e-3
    router_rate: float = 4e-4
    norm_rate: float = 1e-3
    warm_up: int = 20
    row: int = 288
    rows: int = 4
    prose: float = 0.35
    visits: int = 3
    written: int = 166_000
    batch: int = 96
    mix: tuple[tuple[float, float], ...] = (
        (0.0, 0.05), (0.125, 0.03), (0.25, 0.24), (0.375, 0.05), (0.5, 0.18), (0.75, 0.05),
        (1.0, 0.40),
    )  # fmt: skip
    seed: int = 0

    def __post_init__(self) -> None:
        if self.row * self.rows > POSITIONS:
            raise ValueError(f"row * rows must be at most {POSITIONS}, got {self.row * self.rows}")


def draw_groups(
    rows: int, row: int, groups: int, mix: tuple[tuple[float, float], ...], source: random.Random
) -> Tensor:
    """Groups of every token, int64 [rows, row]; mostly one number a row.

    Half of the rows without routed groups get all groups on every second token at random: a
    drafter that runs the shared expert alone reads keys and values that all groups wrote.
    """
    shares, chances = zip(*mix, strict=True)
    drawn = torch.zeros(rows, row, dtype=torch.int64)
    for index in range(rows):
        count = round(source.choices(shares, chances)[0] * groups)
        if count == 0 and source.random() < 0.5:
            drawn[index] = torch.randint(0, 2, (row,)) * groups
        else:
            drawn[index] = count
    return drawn


class Pool:
    """Written rows with the teacher's final hidden states, visited in shuffled epochs."""

    def __init__(self, row: int, hidden: int, visits: int, seed: int, dtype: torch.dtype) -> None:
        self.visits = visits
        self.tokens = torch.zeros(0, row, dtype=torch.int64)
        self.hidden = torch.zeros(0, row, hidden, dtype=dtype)
        self.random = random.Random(seed)
        self.queue: list[int] = []

    def add(self, tokens: Tensor, hidden: Tensor) -> None:
        first = len(self.tokens)
        self.tokens = torch.cat((self.tokens, tokens))
        self.hidden = torch.cat((self.hidden, hidden))
        for _ in range(self.visits):
            fresh = list(range(first, len(self.tokens)))
            self.random.shuffle(fresh)
            self.queue += fresh

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        if len(self.queue) < count:
            rest = list(range(len(self.tokens)))
            self.random.shuffle(rest)
            self.queue += rest
        picked = [self.queue.pop(0) for _ in range(count)]
        return self.tokens[picked], self.hidden[picked]


def saved_layout(checkpoint: Path) -> ExpertLayout:
    """The layout of the student in a training checkpoint."""
    return ExpertLayout(**read_state(checkpoint)["layout"])


class Distiller:
    """Trains a student towards the dense model's next-token probabilities (Hinton et al., 1503.02531).

    Args:
        student: the masked model; its dense model is the teacher.
        schedule: times, rates and mixture.
        prose: human text, or None for written text only.
        writer: writes the rest.
        checkpoint: file that a run saves to about every five minutes and continues from.
    """

    def __init__(
        self,
        student: Student,
        schedule: Schedule,
        prose: Prose | None,
        writer: TextWriter,
        checkpoint: Path | None = None,
    ) -> None:
        self.student, self.schedule, self.prose, self.writer = student, schedule, prose, writer
        self.checkpoint = checkpoint
        self.teacher: Teacher = student.dense
        self.random = random.Random(schedule.seed)
        self.pool = Pool(
            schedule.row,
            student.config.hidden_size,
            schedule.visits,
            schedule.seed,
            self.teacher.dtype,
        )
        self.tokens = 0
        self.steps = 0
        self.elapsed = 0.0
        self.optimizer = self._optimizer()
        self.bases = [group["lr"] for group in self.optimizer.param_groups]
        if checkpoint is not None and checkpoint.is_file():
            self._resume(checkpoint)

    def _optimizer(self) -> torch.optim.Optimizer:
        rates: dict[float, list[Tensor]] = {}
        for name, parameter in self.student.named_parameters():
            if name.endswith("router"):
                rate = self.schedule.router_rate
            elif name.endswith(("_a", "_b")):
                rate = self.schedule.rate
            else:
                rate = self.schedule.norm_rate
            rates.setdefault(rate, []).append(parameter)
        groups = [{"params": params, "lr": rate} for rate, params in rates.items()]
        return torch.optim.Adam(groups, betas=(0.9, 0.98), foreach=True)

    def _factor(self) -> float:
        done = min(1.0, self.elapsed / (60 * self.schedule.minutes))
        warm = min(1.0, (self.steps + 1) / self.schedule.warm_up)
        return warm * max(0.005, 0.5 * (1 + math.cos(math.pi * done)))

    def _batch(self) -> tuple[Tensor, Tensor]:
        plan = self.schedule
        if self.prose is not None and self.random.random() < plan.prose:
            # one prose step in four is a single long row: positions past `row` stay trained
            long = self.random.random() < 0.25
            tokens = (
                self.prose.rows(1, plan.rows * plan.row)
                if long
                else self.prose.rows(plan.rows, plan.row)
            )
            return tokens, self.teacher.hidden(tokens)
        return self.pool.take(plan.rows)

    def step(self) -> float:
        """One update; returns the mean divergence in nats per token."""
        tokens, hidden = self._batch()
        count = self.student.layout.experts.shape[1]
        rows, row = tokens.shape
        groups = draw_groups(rows, row, count, self.schedule.mix, self.random)
        ours = self.student(tokens, groups)
        loss: Tensor = Divergence.apply(  # type: ignore[no-untyped-call]
            ours.flatten(0, 1), hidden.flatten(0, 1), self.teacher.head
        )
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        factor = self._factor()
        for group, base in zip(self.optimizer.param_groups, self.bases, strict=True):
            group["lr"] = base * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.tokens += tokens.numel()
        return float(loss.detach())

    def _write(self) -> None:
        began = time.monotonic()
        share = 0.2 / 0.75 if self.prose is not None else 0.3
        tokens, hidden = self.writer.rows(self.schedule.batch, self.schedule.row, share)
        self.pool.add(tokens, hidden)
        logger.info("wrote {} tokens in {:.0f} s", tokens.numel(), time.monotonic() - began)

    def run(self, report: Report = silent) -> None:
        """Trains until the time is over; `report` is that of `progress_bar`."""
        plan = self.schedule
        began = time.monotonic() - self.elapsed
        saved = time.monotonic()
        while self.elapsed < 60 * plan.minutes:
            rows = len(self.pool.tokens) * plan.row
            # all rounds fall in the first two thirds of the time
            short = len(self.pool.queue) < plan.rows and rows < plan.written
            if rows == 0 or (short and self.elapsed < 40 * plan.minutes):
                self._write()
            loss = self.step()
            now = time.monotonic()
            self.elapsed = now - began
            report(self.elapsed / (60 * plan.minutes), f"step {self.steps}, KL {loss:.3f}")
            if self.checkpoint is not None and now - saved > 300:
                self.save(self.checkpoint)
                saved = now
        if self.checkpoint is not None:
            self.save(self.checkpoint)

    def save(self, path: Path) -> None:
        """Writes parameters, optimiser state, written text and how far it is; atomic."""
        state = {
            "student": self.student.state_dict(),
            "layout": vars(self.student.layout),
            "optimizer": self.optimizer.state_dict(),
            "pool": (self.pool.tokens, self.pool.hidden),
            "done": (self.elapsed, self.steps, self.tokens),
        }
        write_state(path, state)

    def _resume(self, path: Path) -> None:
        state = read_state(path)
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pool.add(*state["pool"])
        self.elapsed, self.steps, self.tokens = state["done"]
        logger.info("continued from {} at {:.1f} minutes", path, self.elapsed / 60)
