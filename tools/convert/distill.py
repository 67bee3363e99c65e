"""Distillation: the MoGE model learns what its dense original says."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from loguru import logger
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastslow.models.dense import POSITIONS, Dense
from fastslow.models.recipe import ExpertLayout
from fastslow.tools.convert.student import Divergence, Student
from fastslow.tools.convert.texts import Prose, TextWriter


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


class Threads:
    """Chooses torch's thread count by measured speed.

    On a shared machine a matmul waits for its slowest thread, so fewer threads can be faster
    while other work runs. Every few steps another count is tried.

    Args:
        most: the largest count to use.
        every: mean number of steps between trials of another count.
    """

    def __init__(self, most: int, every: int = 8) -> None:
        self.speeds: dict[int, float | None] = dict.fromkeys(range(1, most + 1))
        self.every = every
        self.random = random.Random(0)
        self.count = most

    def choose(self) -> int:
        """Sets and returns the count for the next step."""
        unknown = [count for count, speed in self.speeds.items() if speed is None]
        if unknown:
            self.count = unknown[-1]
        elif self.random.random() < 1 / self.every:
            self.count = self.random.choice(list(self.speeds))
        else:
            self.count = max(self.speeds, key=lambda count: self.speeds[count] or 0.0)
        torch.set_num_threads(self.count)
        return self.count

    def record(self, speed: float) -> None:
        """Takes the speed (any unit) of the step just run."""
        known = self.speeds[self.count]
        self.speeds[self.count] = speed if known is None else 0.5 * (known + speed)


@dataclass
class LossCurve:
    """What training did: one entry of each list per logged interval."""

    minutes: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)


def saved_layout(checkpoint: Path) -> ExpertLayout:
    """The layout of the student in a training checkpoint."""
    state = load_file(checkpoint)
    return ExpertLayout(
        **{item.name: state[f"layout.{item.name}"] for item in fields(ExpertLayout)}
    )


class Distiller:
    """Trains a student towards the dense model's next-token law (Hinton et al., 1503.02531).

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
        self.teacher: Dense = student.dense
        self.random = random.Random(schedule.seed)
        self.pool = Pool(
            schedule.row,
            student.config.hidden_size,
            schedule.visits,
            schedule.seed,
            self.teacher.dtype,
        )
        self.curve = LossCurve()
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

    def run(self, report: Callable[[float, float], None] | None = None) -> LossCurve:
        """Trains until the clock is up.

        Args:
            report: called after each step with (minutes done, latest divergence), or None.
        """
        plan = self.schedule
        began = time.monotonic() - self.elapsed
        saved = logged = time.monotonic()
        recent: list[float] = []
        threads = Threads(torch.get_num_threads())
        seen = self.tokens
        while self.elapsed < 60 * plan.minutes:
            rows = len(self.pool.tokens) * plan.row
            # all rounds fall in the first two thirds of the time
            if rows == 0 or (
                len(self.pool.queue) < plan.rows
                and rows < plan.written
                and self.elapsed < 40 * plan.minutes
            ):
                self._write()
            threads.choose()
            start, before = time.monotonic(), self.tokens
            loss = self.step()
            threads.record((self.tokens - before) / (time.monotonic() - start))
            recent.append(loss)
            now = time.monotonic()
            self.elapsed = now - began
            if report is not None:
                report(self.elapsed / 60, loss)
            if now - logged > 60:
                mean = sum(recent) / len(recent)
                speed = (self.tokens - seen) / (now - logged)
                logger.info(
                    "{:.1f} min, step {}, {} tokens, KL {:.4f}, {:.0f} tokens/s, rate x{:.2f}, "
                    "{} written, {} threads",
                    self.elapsed / 60, self.steps, self.tokens, mean, speed, self._factor(),
                    rows, threads.count,
                )  # fmt: skip
                self.curve.minutes.append(round(self.elapsed / 60, 1))
                self.curve.tokens.append(self.tokens)
                self.curve.divergence.append(round(mean, 4))
                recent, seen, logged = [], self.tokens, now
            if self.checkpoint is not None and now - saved > 300:
                self.save(self.checkpoint)
                saved = now
        if self.checkpoint is not None:
            self.save(self.checkpoint)
        return self.curve

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.student.named_parameters():
            yield f"student.{name}", parameter.detach().contiguous()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"adam.{key}.{name}", torch.as_tensor(value).contiguous()
        yield "pool.tokens", self.pool.tokens
        yield "pool.hidden", self.pool.hidden
        yield "clock", torch.tensor([self.elapsed, self.steps, self.tokens], dtype=torch.float64)
        for name, values in vars(self.curve).items():
            yield f"curve.{name}", torch.tensor(values, dtype=torch.float64)
        for name, tensor in vars(self.student.layout).items():
            yield f"layout.{name}", tensor.contiguous()

    def save(self, path: Path) -> None:
        """Writes parameters, optimiser state, written text and clock; atomic."""
        part = path.with_suffix(".part")
        save_file(dict(self._state()), part)
        part.rename(path)

    def _resume(self, path: Path) -> None:
        state = load_file(path)
        for name, parameter in self.student.named_parameters():
            parameter.data.copy_(state[f"student.{name}"])
            moments = ("step", "exp_avg", "exp_avg_sq")
            if f"adam.step.{name}" in state:
                self.optimizer.state[parameter] = {
                    key: state[f"adam.{key}.{name}"].clone() for key in moments
                }
        self.pool.add(state["pool.tokens"], state["pool.hidden"])
        self.elapsed, steps, tokens = state["clock"].tolist()
        self.steps, self.tokens = int(steps), int(tokens)
        for name in ("minutes", "tokens", "divergence"):
            setattr(self.curve, name, state[f"curve.{name}"].tolist())
        logger.info("continued from {} at {:.1f} minutes", path, self.elapsed / 60)


@dataclass(frozen=True)
class Schedule:
    """How long and how to train.

    minutes: wall-clock minutes, writing of text included; the learning rate follows this clock
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
