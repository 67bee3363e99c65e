"""From prompts to a head: answers, features, training, evaluation. Each part is taken up where it
was left."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from safetensors.torch import save_file

from fastslow.draft.head.config import HeadConfig, read_head
from fastslow.draft.head.target import draft_vocabulary, fingerprint, first_weights, read_ends
from fastslow.engine.model.base import Model
from fastslow.tools.train_head.answers import AnswerStore, Ask, Conversation, TrainText
from fastslow.tools.train_head.features import HiddenStates, Shards
from fastslow.tools.train_head.quality import HeadQuality, head_quality
from fastslow.tools.train_head.trainer import Course, Measured, Trainer

HELD = 0.05  # share of prompts that nothing is learnt from
MOST_HELD = 64
ANSWER_ROWS = 256  # that attention has room for besides a prompt


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What is made, and where.

    Attributes:
        target: the target's checkpoint folder.
        out: file of the finished head.
        work: folder of answers, features, checkpoint and curve; kept.
        layers: target layers to fuse; the last must be the target's last.
        vocabulary: tokens that can be drafted.
        answer: most tokens of an answer.
        evaluations: how often the held-out answers are walked.
        course: of the training.
        start: a head of a like target, whose weights training begins with; None = untrained ones.
    """

    target: Path
    out: Path
    work: Path
    layers: tuple[int, ...]
    vocabulary: int = 8192
    answer: int = 192
    evaluations: int = 10
    course: Course = field(default_factory=Course)
    start: Path | None = None


@dataclass(slots=True)
class Reports:
    """Who is told how far each part is."""

    answers: Callable[[int], None] = lambda done: None
    features: Callable[[int], None] = lambda done: None
    training: Callable[[Measured], None] = lambda measured: None


def default_layers(count: int) -> tuple[int, ...]:
    """An early, a late and the last of a target's layers."""
    return tuple(sorted({count // 3 - 1, 2 * count // 3 - 1, count - 1} - {-1}))


def train_head(
    plan: TrainPlan, model: Model, ask: Ask, prompts: Sequence[Conversation], reports: Reports
) -> HeadQuality:
    """Make a head; gives what it is worth on answers held out.

    Args:
        plan: what and where.
        model: the target, for features.
        ask: the target, for answers.
        prompts: what it is asked. The same prompts must be given when the work is taken up again.
        reports: who is told.

    Raises:
        ValueError: too few prompts, layers that do not end with the target's last, or a `start` of
            another shape.
    """
    if plan.layers[-1] != model.config.layers - 1:
        raise ValueError(f"layers={plan.layers} must end with {model.config.layers - 1}")
    if plan.start is not None:
        read_head(plan.start)  # before the long part
    if len(prompts) < 2:
        raise ValueError(f"data must hold at least 2 prompts, got {len(prompts)}")
    plan.work.mkdir(parents=True, exist_ok=True)
    answers = AnswerStore(plan.work / "answers.jsonl")
    answers.write(prompts, ask, tokens=plan.answer, report=reports.answers)
    held, taught = _parted(answers.read()[: len(prompts)])
    shards = Shards(plan.work / "features", plan.layers)
    shards.grow(model, taught, report=reports.features)
    test = Shards(plan.work / "held-out", plan.layers)
    test.grow(model, held)
    walked = [seen for number in range(len(test.counts)) for seen in test.read(number)]
    trainer = _trainer(plan, taught, model.config.vocab_size)
    curve = TrainCurve(plan, trainer, walked)

    def report(measured: Measured) -> None:
        reports.training(measured)
        curve.add(measured)

    trainer.run(shards.epoch, report)
    found = curve.walk()
    story = {"tokens": trainer.tokens, "answers": len(taught), "held_out": vars_of(found)}
    save_head(trainer, plan.out, fingerprint(plan.target), story)
    return found


def _parted(texts: Sequence[TrainText]) -> tuple[list[TrainText], list[TrainText]]:
    """Held out and taught: of the first few only the greedy ones are walked."""
    count = max(1, min(MOST_HELD, int(HELD * len(texts))))
    held = [text for text in texts[:count] if text.greedy]
    if not held:
        logger.info("no held-out answer is greedy: the figures are of sampled ones")
    return held or list(texts[:count]), list(texts[count:])


def _trainer(plan: TrainPlan, taught: Sequence[TrainText], vocabulary: int) -> Trainer:
    said = (token for text in taught for token in text.tokens[text.start :])
    tokens = draft_vocabulary(said, min(plan.vocabulary, vocabulary), vocabulary)
    config, weights = first_weights(plan.target, plan.layers, tokens, plan.course.seed)
    if plan.course.prompts:
        rows = plan.course.prompt_rows
        config = replace(config, prompt=rows, window=max(config.window, rows + ANSWER_ROWS))
    if plan.start is not None:
        begun, table = read_head(plan.start)
        config = replace(config, neurons=begun.neurons)  # its own, whatever the target's are
        if replace(begun, **_free(config)) != config:
            raise ValueError(
                f"start={plan.start} is a head of another shape: {begun}, not {config}"
            )
        weights = table | {"tokens": tokens}
    checkpoint = plan.work / "checkpoint.safetensors"
    return Trainer(config, weights, read_ends(plan.target), plan.course, checkpoint)


def _free(config: HeadConfig) -> dict[str, Any]:
    """What a head may have otherwise than the one that it begins with."""
    return {name: getattr(config, name) for name in ("vocabulary", "prompt", "window")}


class TrainCurve:
    """Loss and acceptance against tokens seen, as JSON Lines beside the features.

    Args:
        plan: where, and how often held-out answers are walked.
        trainer: whose.
        texts: held out.
    """

    def __init__(self, plan: TrainPlan, trainer: Trainer, texts: Sequence[HiddenStates]) -> None:
        self.path = plan.work / "curve.jsonl"
        self._trainer = trainer
        self._texts = texts
        self._every = max(1, plan.course.tokens // max(1, plan.evaluations))
        self._next = (trainer.tokens // self._every + 1) * self._every
        self._losses: list[float] = []

    def add(self, measured: Measured) -> None:
        """After an update."""
        self._losses.append(measured.loss)
        if measured.tokens >= self._next and measured.tokens < self._trainer.course.tokens:
            self._next += self._every
            self.walk()

    def walk(self) -> HeadQuality:
        """Walk the held-out answers, and write a line."""
        found = head_quality(self._trainer, self._texts)
        losses = self._losses
        line = {
            "tokens": self._trainer.tokens,
            "loss": round(sum(losses) / len(losses), 4) if losses else None,
            **vars_of(found),
        }
        self._losses = []
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return found


def vars_of(found: HeadQuality) -> dict[str, Any]:
    """For a line of JSON."""
    return {
        "tokens_per_step": round(found.tokens_per_step, 3),
        "acceptance": [round(share, 3) for share in found.acceptance],
    }


def save_head(trainer: Trainer, path: Path, target: str, story: dict[str, Any]) -> None:
    """Write a head's file: weights in bfloat16, its shape, whose it is, and how it came about."""
    table = {name: p.detach().to(torch.bfloat16) for name, p in trainer.weights.items()}
    table["tokens"] = trainer.vocabulary
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        table, part, trainer.config.metadata() | {"target": target, "provenance": json.dumps(story)}
    )
    part.rename(path)
