from __future__ import annotations

import random

import torch
from torch import Tensor


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
