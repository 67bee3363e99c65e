"""The target's own answers to prompts: a head learns what it will have to guess."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from fastslow.engine.host.progress import Report, silent
from fastslow.engine.params import SamplingParams
from fastslow.output import Output
from fastslow.tools.prompts import Conversation

Ask = Callable[[Sequence[Conversation], Sequence[SamplingParams]], Sequence[Output]]

GREEDY = 0.7  # share of answers at temperature 0; the others are drawn at 0.7 to 1
CHUNK = 128  # prompts asked at once and written at once


class TrainText(NamedTuple):
    """Token ids of a prompt with its answer, which begins at `start`; `greedy`: not sampled."""

    tokens: list[int]
    start: int
    greedy: bool = True


class AnswerStore:
    """A file of answers, one JSON object a line, that grows; a last line that was cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file():
            whole = path.read_bytes()
            kept = whole[: whole.rfind(b"\n") + 1]
            if len(kept) < len(whole):
                path.write_bytes(kept)

    def read(self) -> list[TrainText]:
        """All answers so far, in the order of their prompts."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        parts = ((line["prompt"], line["answer"], line["temperature"]) for line in lines)
        return [TrainText([*p, *answer], len(p), not heat) for p, answer, heat in parts]

    def write(
        self, prompts: Sequence[Conversation], ask: Ask, *, tokens: int, report: Report = silent
    ) -> None:
        """Answer the prompts that are not answered yet, with at most `tokens` tokens each."""
        done = len(self.read())
        while done < len(prompts):
            report(done / len(prompts), "answers")
            some = prompts[done : done + CHUNK]
            params = [_params(done + i, tokens) for i in range(len(some))]
            outputs = ask(some, params)
            with self.path.open("a", encoding="utf-8") as file:
                for output, used in zip(outputs, params, strict=True):
                    line = {
                        "prompt": list(output.prompt_token_ids),
                        "answer": list(output.token_ids),
                        "temperature": used.temperature,
                    }
                    file.write(json.dumps(line, separators=(",", ":")) + "\n")
            done += len(some)


def _params(number: int, tokens: int) -> SamplingParams:
    random = Random(f"0 {number}")  # by address: the same whatever was resumed when
    heat = 0.0 if random.random() < GREEDY else random.uniform(0.7, 1.0)
    return SamplingParams(max_tokens=tokens, temperature=heat, seed=random.getrandbits(62))
