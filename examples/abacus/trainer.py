"""The training loop: learn, and look at held-out tasks."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from abacus.batches import LENGTH, Sample, Writer, pack
from abacus.moge import Decoder, Packed, Shape, places, routers, split
from fastslow.engine.host.progress import progress_bar
from fastslow.tools.train_head.muon import Muon
from fastslow.tools.train_head.trainer import faster_dtype

MATRIX_LR, LR = 0.007, 3e-3
DECAY = 0.02  # of matrices
WARM = 100  # steps
FADE = 0.4  # the last part of the time, in which the rates fall to nothing
AVERAGE = 0.998


@dataclass(slots=True)
class Progressed:
    """The progress of a training."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    split: int | None = None  # the step at which it became a mixture
    curve: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    def __init__(self, shape: Shape, writer: Writer, seed: int, rows: int) -> None:
        torch.manual_seed(seed)
        self.done = Progressed()
        self._shape = shape
        self._writer, self._seed, self._rows = writer, seed, rows
        self._take(Decoder(shape.dense() if writer.mix.split else shape))

    def _take(self, model: Decoder) -> None:
        self.model = model
        self.average = {n: p.detach().clone() for n, p in model.named_parameters()}
        self._optimizers = optimizers(model)
        self._rates = [group["lr"] for o in self._optimizers for group in o.param_groups]

    def _split(self) -> None:
        """Continue with a mixture of groups of the dense model's weights, averages and momentum; AdamW begins anew."""
        old, average = dict(self.model.named_parameters()), self.average
        states = {n: self._optimizers[0].state.get(p, {}) for n, p in old.items()}
        moved = {n: s.get("momentum", torch.zeros_like(old[n])) for n, s in states.items()}
        where = places({n: p.detach() for n, p in old.items()}, self._shape)
        self._take(Decoder(self._shape))
        router = routers(self._shape, self._seed)
        weights = split({n: p.detach() for n, p in old.items()}, self._shape, where)
        self.model.load_state_dict(weights | router)
        copies = {n: t.clone() for n, t in router.items()}
        self.average = split(average, self._shape, where) | copies
        moved = split(moved, self._shape, where)
        matrices = {id(p) for group in self._optimizers[0].param_groups for p in group["params"]}
        for name, p in self.model.named_parameters():
            if id(p) in matrices:
                self._optimizers[0].state[p]["momentum"] = moved[name]
        self.done.split = self.done.steps

    def run(self, minutes: float, every: float) -> bool:
        """Train for some minutes, looking every `every`. False: Ctrl-C has ended it early."""
        began, looked, loss = time.thread_time(), 0.0, 0.0
        try:
            with progress_bar() as report:
                while (share := self.done.seconds / (minutes * 60)) < 1:
                    loss = self._step(share)
                    self.done.seconds = time.thread_time() - began
                    report(min(1.0, share), f"training, loss {loss:.3f}")
                    if self.done.seconds - looked >= every * 60:
                        looked = self.done.seconds
                        self._look(loss)
            self._look(loss)
        except KeyboardInterrupt:
            return False
        return True

    def _step(self, share: float) -> float:
        done = self.done
        if self.model.shape.groups != self._shape.groups and share >= self._writer.mix.split:
            self._split()
        mix = self._writer.mix
        grown = min(1.0, (done.tokens + 1) / (mix.growth + 1))
        size = 2 + int((mix.largest - 2) * grown)
        own = f"train {self._seed} {done.steps}"
        batch = self._writer.batch(own, self._rows, size)
        young = done.steps - (done.split or 0) + 1
        rate = min(1.0, young / WARM, max(0.01, (1 - share) / FADE))
        groups = [group for o in self._optimizers for group in o.param_groups]
        for group, full in zip(groups, self._rates, strict=True):
            group["lr"] = full * rate
        loss, error = self.model.loss(batch, mix.balance)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        keep = min(AVERAGE, (done.steps + 1) / (done.steps + 10))
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.average[name].lerp_(p, 1 - keep)
        done.steps += 1
        done.tokens += self._rows * LENGTH
        return float(error)

    def _look(self, loss: float) -> None:
        found = self.accuracy(192)
        done, minutes = self.done, round(self.done.seconds / 60, 1)
        so_far = {"minutes": minutes, "steps": done.steps, "tokens": done.tokens}
        done.curve.append({**so_far, "loss": round(loss, 4), **found})
        print(json.dumps(done.curve[-1]), flush=True)

    @torch.no_grad()
    def accuracy(self, count: int) -> dict[str, float]:
        """Share of held-out tasks whose every token is the likeliest one, by the way of answering.

        So much is what greedy decoding gets right word for word; it may also get an answer right
        after a slip in the steps, which does not count.
        """
        own = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.model.load_state_dict(self.average)
        tasks = sorted(
            islice(self._writer.mix.held_out(0), count),
            key=lambda task: len(task.prompt + task.steps),
        )
        found = {}
        ways = (("deep", True, 8), ("fast", False, 8), ("fast, no groups", False, 0))
        for name, thinking, groups in ways:
            samples = [self._writer.sample(task, thinking, groups) for task in tasks]
            right = sum(self._right(samples[first : first + 16]) for first in range(0, count, 16))
            found[name] = round(right / count, 3)
        self.model.load_state_dict(own)
        return found

    def _right(self, samples: list[Sample]) -> int:
        """Count the samples that are right in each token to learn: one a row, cut off where a row ends."""
        short = [Sample(s.tokens[:LENGTH], s.learnt[:LENGTH], s.groups) for s in samples]
        stop = -(-max(len(sample.tokens) for sample in short) // 64) * 64
        rows = [pack([sample], 1) for sample in short]
        batch = Packed(*(torch.cat(parts)[:, :stop] for parts in zip(*rows, strict=True)))
        logits, _ = self.model(batch)
        right = (logits.argmax(-1) == batch.targets) | (batch.targets < 0)
        return int(right.all(1).sum())


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding, head, router, norms and biases."""
    apart = ("embed_tokens", "lm_head", "mlp.gate", "router_scale")
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if p.ndim > 1 and not n.endswith(apart)]
    chosen = {id(p) for p in matrices}
    rest = [p for p in named.values() if id(p) not in chosen]
    return [
        Muon(matrices, MATRIX_LR, DECAY, faster_dtype()),
        torch.optim.AdamW(rest, LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
