"""Prompts to train on, and the target's own answers to them: a head learns what it will have to guess."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Protocol

from fastslow.engine.params import SamplingParams

Conversation = list[dict[str, Any]]


def read_prompts(path: Path) -> list[Conversation]:
    """One conversation a line, ending with a user's message.

    A line is a JSON object with `prompt` (text), `turns` (texts, the first is taken) or `messages`
    (role and content); other fields are ignored, and so are empty lines.

    Raises:
        ValueError: the first line that is none of these, or a file without prompts.
    """
    found: list[Conversation] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                found.append(_conversation(line, f"{path}, line {number}"))
    if not found:
        raise ValueError(f"data={path} must hold at least 1 prompt, and is empty")
    return found


def _conversation(line: str, where: str) -> Conversation:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if isinstance(record, dict):
        if isinstance(messages := record.get("messages"), list) and messages:
            return messages
        turns = record.get("turns")
        text = turns[0] if isinstance(turns, list) and turns else record.get("prompt")
        if isinstance(text, str) and text:
            return [{"role": "user", "content": text}]
    raise ValueError(f"{where}: must have `prompt`, `turns` or `messages` with some text")


class Answered(Protocol):
    """What is read of an answer."""

    @property
    def prompt_token_ids(self) -> list[int]: ...
    @property
    def token_ids(self) -> list[int]: ...


Ask = Callable[[Sequence[Conversation], Sequence[SamplingParams]], Sequence[Answered]]


class TrainText(NamedTuple):
    """Token ids of a prompt with its answer, which begins at `start`; `greedy`: not sampled."""

    tokens: list[int]
    start: int
    greedy: bool = True


class AnswerStore:
    """A file of answers, one JSON object a line, that grows and is taken up again where it ends.

    Args:
        path: of the file. A last line that was cut off is dropped.
    """

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
        return [
            TrainText(
                [*line["prompt"], *line["answer"]], len(line["prompt"]), not line["temperature"]
            )
            for line in lines
        ]

    def write(
        self,
        prompts: Sequence[Conversation],
        ask: Ask,
        *,
        tokens: int = 192,
        greedy: float = 0.7,
        chunk: int = 128,
        seed: int = 0,
        report: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Answer the prompts that are not answered yet.

        Args:
            prompts: as in every earlier call; the first ones are answered already.
            ask: the target.
            tokens: most tokens of an answer.
            greedy: share of answers at temperature 0; the others are drawn at 0.7 to 1.
            chunk: prompts asked at once and written together.
            seed: of the shares and the draws.
            report: called with the number of prompts answered.
        """
        done = len(self.read())
        while done < len(prompts):
            report(done)
            some = prompts[done : done + chunk]
            params = [self._params(seed, done + i, tokens, greedy) for i in range(len(some))]
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
        report(done)

    @staticmethod
    def _params(seed: int, number: int, tokens: int, greedy: float) -> SamplingParams:
        random = Random(f"{seed} {number}")  # by address: the same whatever was resumed when
        heat = 0.0 if random.random() < greedy else random.uniform(0.7, 1.0)
        return SamplingParams(max_tokens=tokens, temperature=heat, seed=random.getrandbits(62))
