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

from fastslow.engine.convert.corpus import Prose, Writer
from fastslow.engine.convert.dense import Dense
from fastslow.engine.convert.divergence import Divergence
from fastslow.engine.convert.layout import Layout
from fastslow.engine.convert.pool import Pool
from fastslow.engine.convert.schedule import Schedule, draw_groups
from fastslow.engine.convert.student import Student
from fastslow.engine.convert.threads import Threads


@dataclass
class Curve:
    """What training did: one entry of each list per logged interval."""

    minutes: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)


def saved_layout(checkpoint: Path) -> Layout:
    """The layout of the student in a training checkpoint."""
    state = load_file(checkpoint)
    return Layout(**{item.name: state[f"layout.{item.name}"] for item in fields(Layout)})


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
        writer: Writer,
        checkpoint: Path | None = None,
    ) -> None:
        self.student, self.schedule, self.prose, self.writer = student, schedule, prose, writer
        self.checkpoint = checkpoint
        self.teacher: Dense = student.dense
        self.random = random.Random(schedule.seed)
        self.pool = Pool(
            schedule.row,
            student.config.hidden,
            schedule.visits,
            schedule.seed,
            self.teacher.dtype,
        )
        self.curve = Curve()
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

    def run(self, report: Callable[[float, float], None] | None = None) -> Curve:
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
