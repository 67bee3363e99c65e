"""Batches: tasks as chats, thought out or answered at once, packed into rows."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import torch

from abacus.moge import Packed
from abacus.task import Task
from abacus.tasks import Mix
from fastslow.engine.text.templates import ChatTemplate
from fastslow.engine.text.vocabulary import Tokenizer

LENGTH = 256  # of a row
OPEN, CLOSE, END = "[unused16]", "[unused17]", "[unused10]"
CUT = 0.2  # share of the thoughts that end early, as a thinking budget ends them
FILL = 0.96


class Sample(NamedTuple):
    """A chat as tokens; `learnt`: whether the model is to say each."""

    tokens: list[int]
    learnt: list[bool]
    groups: int


class Writer:
    """Turns tasks into samples as the engine would write them."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, groups: int, mix: Mix) -> None:
        self.mix = mix
        self._tokenizer = tokenizer
        self._template = template
        self._groups = groups

    def sample(
        self, task: Task, thinking: bool, groups: int, cut: float = 1.0, closing: str = ""
    ) -> Sample:
        """cut: the share of the thought that is written before it is closed from outside, with
        `closing` as its last words."""
        asked = [{"role": "user", "content": task.prompt}]
        text = self._template.render(asked, "on" if thinking else "off")
        tokens = self._tokenizer.encode(text, self._template.add_special)
        learnt = [False] * len(tokens)
        if thinking:
            thought = self._encode(OPEN + task.steps)
            thought = thought[: max(1, round(cut * len(thought)))]
            close = self._encode(CLOSE if cut >= 1 else closing + CLOSE)
            tokens += [*thought, *close]
            learnt += [True] * len(thought) + [cut >= 1] * len(close)
        answer = self._encode(task.answer + END)
        return Sample(tokens + answer, learnt + [True] * len(answer), groups)

    def random(self, rng: Random, size: int) -> Sample:
        """A sample to learn from: some of them thought out, some with fewer groups."""
        thinking = rng.random() < self.mix.think
        shares = self.mix.thought if thinking else self.mix.answered
        task = self.mix.draw(rng, size, shares)
        while task.held_out:
            task = self.mix.draw(rng, size, shares)
        whole = rng.random() < self.mix.whole
        groups = self._groups if whole else rng.randint(0, min(self.mix.most, self._groups))
        cut = rng.random() if rng.random() < CUT else 1.0
        return self.sample(task, thinking, groups, cut, rng.choice(("", "\n")))

    def batch(self, seed: str, rows: int, size: int = 99) -> Packed:
        """`rows` full rows of random samples; the same for the same seed."""
        rng = Random(seed)
        samples: list[Sample] = []
        while sum(len(sample.tokens) for sample in samples) < FILL * rows * LENGTH:
            sample = self.random(rng, size)
            if len(sample.tokens) <= LENGTH:
                samples.append(sample)
        return pack(samples, rows)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, False)


def pack(samples: list[Sample], rows: int) -> Packed:
    """Longest first, each into the first row that has room; what fits nowhere is left out."""
    held: list[list[Sample]] = [[] for _ in range(rows)]
    room = [LENGTH] * rows
    for sample in sorted(samples, key=lambda sample: -len(sample.tokens)):
        row = next((n for n, left in enumerate(room) if left >= len(sample.tokens)), None)
        if row is not None:
            held[row].append(sample)
            room[row] -= len(sample.tokens)
    shape = (rows, LENGTH)
    tokens, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -100)
    positions, groups = torch.zeros_like(tokens), torch.zeros_like(tokens)
    numbers = torch.full(shape, -1)
    for row, kept in enumerate(held):
        start = 0
        for number, sample in enumerate(kept):
            ids = torch.tensor(sample.tokens)
            stop = start + len(ids)
            tokens[row, start:stop] = ids
            said = torch.tensor(sample.learnt[1:])
            targets[row, start : stop - 1] = torch.where(said, ids[1:], -100)
            positions[row, start:stop] = torch.arange(len(ids))
            numbers[row, start:stop] = number
            groups[row, start:stop] = sample.groups
            start = stop
    return Packed(tokens, targets, positions, numbers, groups)
