"""Training of a draft head on stored features."""

from __future__ import annotations

import json
import math
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from loguru import logger
from safetensors.torch import save_file
from torch import Tensor

from fastslow.draft.head.config import MATRICES, NORMS, Ends, HeadConfig, opened, read_metadata
from fastslow.draft.head.layer import HeadLayer
from fastslow.engine.model.norms import plain_norm
from fastslow.tools.job_options import TrainConfig
from fastslow.tools.train_head.batches import Batch, Shown, batches
from fastslow.tools.train_head.features import HiddenStates
from fastslow.tools.train_head.muon import Muon
from fastslow.tools.train_head.unroll import unroll

SHAPE = (256, 512, 1024)  # of the products that are timed
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@cache
def faster_dtype() -> torch.dtype:
    """bfloat16 where its products take no longer than those of float32, else float32: timed, since torch does
    not tell which chips have instructions for it."""
    plain, short = (_seconds(dtype) for dtype in (torch.float32, torch.bfloat16))
    chosen = torch.bfloat16 if short <= plain else torch.float32
    logger.info("training in {}: products in bfloat16 take {:.1f} x float32", chosen, short / plain)
    return chosen


def _seconds(dtype: torch.dtype) -> float:
    rows, inputs, outputs = SHAPE
    x, w = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    return min(timeit.repeat(lambda: F.linear(x, w), number=1, repeat=4))


def guess(
    hidden_NH: Tensor, target_ND: Tensor, head_DH: Tensor, lift_D: Tensor, weight_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the head's probabilities with the target's, over D candidates: the weighted sum, f32 [], and
    the guesses, int64 [N], indices among the candidates. The target's mass outside them counts for nothing. lift: is
    added to the head's logits, `Candidates`. The head's rows are the target's own and get no gradient."""
    logits = (hidden_NH.to(head_DH.dtype) @ head_DH.T).float()
    log_q = torch.log_softmax(logits + lift_D, -1)
    total = -torch.linalg.vecdot(target_ND.float(), log_q) @ weight_N
    return total, logits.argmax(-1)


@dataclass(slots=True)
class Measured:
    """Averages over some batches: loss in nats a row, and how often step k is right."""

    tokens: int
    loss: float
    right: list[float]


class Trainer:
    """Works on the sum of each step's cross entropy with the target's probabilities. weights: of `HeadConfig.shapes`.
    checkpoint: file to continue from, if it is there, and to save to."""

    def __init__(
        self,
        config: HeadConfig,
        weights: dict[str, Tensor],
        ends: Ends,
        train_config: TrainConfig,
        checkpoint: Path | None = None,
    ) -> None:
        self.config = config
        self.train_config = train_config
        self.checkpoint = checkpoint
        self._dtype = self._products()
        self.vocabulary = weights["tokens"]
        self.weights = {
            name: torch.nn.Parameter(weights[name].float()) for name in (*MATRICES, *NORMS)
        }
        self._embedding = ends.embedding
        self._head_VH = ends.head
        self._norm = ends.norm.float()
        matrices, norms = ([self.weights[n] for n in names] for names in (MATRICES, NORMS))
        self._optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, train_config.rate, train_config.decay, self._dtype),
            torch.optim.AdamW(norms, train_config.rate, (0.9, 0.95), weight_decay=0.0),
        ]
        self.tokens = 0
        self.updates = 0
        self.random = Random(train_config.seed)
        if checkpoint is not None and checkpoint.is_file():
            self._resume(checkpoint)

    def measure(self, batch: Batch, sampled: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        """The loss, and per step bool [B, T]: the guess is the target's likeliest token. sampled: share of the draft
        vocabulary that competes, beside the batch's own tokens."""
        ids, lift, place = self._candidates(batch, sampled)
        head_DH = self._head_VH[ids].to(self._dtype)
        target_RD, goals = self._target_probs(batch, head_DH, lift), place[batch.best.flatten()]
        layer = HeadLayer(self.config, self.weights, self._linear())
        embed = lambda ids: F.embedding(ids, self._embedding).float()
        total = torch.zeros(())
        hits: list[Tensor] = []
        for step, hidden in enumerate(unroll(layer, batch, embed, self.train_config.steps)):
            counted = batch.counts(step)
            at = counted.flatten().nonzero()[:, 0]
            weight = torch.full((len(at),), self.train_config.fade**step)
            ready = layer.final_norm(hidden).flatten(0, 1)[at]
            loss, guesses = guess(ready, target_RD[at], head_DH, lift, weight)
            total = total + loss
            hit = torch.zeros(counted.numel(), dtype=torch.bool)
            hit[at] = guesses == goals[at]
            hits.append(hit.view_as(counted))
        return total / max(batch.tokens, 1), hits

    def update(self, batch: Batch) -> Measured:
        """Update the weights by one batch, and return what was measured."""
        loss, hits = self.measure(batch, self.train_config.sampled)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.train_config.rate * self._factor()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self.tokens += batch.tokens
        right = [float(h.sum()) / max(int(batch.counts(k).sum()), 1) for k, h in enumerate(hits)]
        return Measured(self.tokens, float(loss.detach()), right)

    def run(
        self,
        texts: Callable[[Random], Iterator[Sequence[HiddenStates]]],
        report: Callable[[Measured], None] = lambda _: None,
        every: float = 120.0,
    ) -> None:
        """Train until it is over; a checkpoint every `every` seconds, and at the end. texts: an epoch, groups
        of texts in an order drawn from what it is handed."""
        saved = time.monotonic()
        try:
            for batch in self._epochs(texts):
                report(self.update(batch))
                if time.monotonic() - saved > every:
                    self.save()
                    saved = time.monotonic()
        finally:  # Ctrl-C too
            self.save()

    def save(self) -> None:
        """Write the head and the optimiser's state to the checkpoint, a head's file with more in it; atomic."""
        if self.checkpoint is None:
            return
        table = {"tokens": self.vocabulary}
        for name, p in self.weights.items():
            table[name] = p.detach()
            state = self._optimizers[name in NORMS].state.get(p, {})
            table |= {f"{name}.{key}": value.contiguous() for key, value in state.items()}
        part = self.checkpoint.with_suffix(".part")
        trained = json.dumps([self.tokens, self.updates])
        facts = {"trained": trained, "products": str(self._dtype).removeprefix("torch.")}
        save_file(table, part, self.config.metadata() | facts)
        part.replace(self.checkpoint)

    def _products(self) -> torch.dtype:
        """The dtype of products: what the options say, else the checkpoint's, else the faster one."""
        named: str = self.train_config.products
        if named == "auto" and self.checkpoint is not None and self.checkpoint.is_file():
            named = read_metadata(self.checkpoint).get("products", named)
        return DTYPES[named] if named in DTYPES else faster_dtype()

    def _resume(self, path: Path) -> None:
        with opened(path) as file:
            facts = dict(file.metadata() or {})
            table = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        same = HeadConfig.from_metadata(facts) == self.config
        if not same or not torch.equal(table["tokens"], self.vocabulary):
            raise ValueError(f"checkpoint={path} is of another head: remove it to begin again")
        for name, p in self.weights.items():
            p.data.copy_(table.pop(name))
        for key, value in table.items():
            name, _, field = key.partition(".")
            if field:
                self._optimizers[name in NORMS].state[self.weights[name]][field] = value
        self.tokens, self.updates = json.loads(facts["trained"])
        self.random = Random(f"{self.train_config.seed} {self.updates}")

    def _epochs(
        self, texts: Callable[[Random], Iterator[Sequence[HiddenStates]]]
    ) -> Iterator[Batch]:
        c = self.train_config
        shown = Shown(c.prompts, self.config.prompt, c.moved)
        while self.tokens < c.tokens:
            before = self.tokens
            for group in texts(self.random):
                for batch in batches(group, c.rows, shown, self.config.hidden, self.random):
                    if self.tokens >= c.tokens:
                        return
                    yield batch
            if self.tokens == before:
                raise ValueError("no answer has at least 3 tokens: there is nothing to learn from")

    def _factor(self) -> float:
        warm = min(1.0, (self.updates + 1) / self.train_config.warm_up)
        done = min(1.0, self.tokens / self.train_config.tokens)
        return warm * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))

    def _linear(self) -> Callable[[str, Tensor], Tensor]:
        cast = {name: self.weights[name].to(self._dtype) for name in MATRICES}
        return lambda name, x: F.linear(x.to(self._dtype), cast[name]).float()

    def _candidates(self, batch: Batch, sampled: float) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [D] that compete: the batch's own, and a share of the draft vocabulary; the logarithm [D] of how
        many tokens each stands for; each id's place among them, or -1."""
        place = torch.full((len(self._embedding),), -1)
        parts = (batch.before.after, batch.after, batch.best)
        own = torch.unique(torch.cat([part.flatten() for part in parts]))
        place[own] = torch.arange(len(own))
        others = self.vocabulary[place[self.vocabulary.long()] < 0].long()
        if sampled < 1:
            others = others[torch.rand(len(others)) < sampled]
        ids = torch.cat((own, others))
        lift = torch.zeros(len(ids))
        lift[len(own) :] = -math.log(sampled)
        place[ids] = torch.arange(len(ids))
        return ids, lift, place

    @torch.no_grad()
    def _target_probs(self, batch: Batch, head_DH: Tensor, lift_D: Tensor) -> Tensor:
        """The target's probabilities [B*T, D] of the candidates, and of those that they stand for."""
        goal = plain_norm(batch.goal.float(), self.config.eps, self._norm)
        logits = F.linear(goal.flatten(0, 1).to(self._dtype), head_DH).float()
        return logits.add_(lift_D).sub_(batch.mass.flatten()[:, None]).exp_().to(self._dtype)
