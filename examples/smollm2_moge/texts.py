"""Texts to calibrate and to distil with: people's, and those that the dense model writes."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor

from fastslow.engine.text.vocabulary import Tokenizer
from smollm2_moge.teacher import KV, Teacher


def documents(path: Path, shortest: int = 600) -> Iterator[str]:
    """Yields the text files of a folder in sorted order, or one file; files shorter than `shortest` characters
    are left out."""
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    for file in files:
        text = re.sub(r"[ \t\r]+", " ", file.read_text("utf-8", "ignore"))
        text = re.sub(r"(?<=[a-z,;]) ?\n ?(?=[a-z(])", " ", text)  # lines that were wrapped
        if len(text) >= shortest:
            yield text.strip()


OPENINGS = (
    "What", "How", "Why", "Who", "When", "Where", "Which", "Can you", "Write", "Explain", "Give me",
    "Tell me", "I", "My", "Is it", "Describe", "Compare", "A", "If", "Please", "Make a list of",
    "Write a Python function", "In what year", "Solve", "Create", "Help me", "Translate",
    "Suggest", "What is the difference between", "How many", "Should I", "Imagine",
)  # fmt: skip
TASKS = (
    "Summarize: {}",
    "Summarize the following text.\n\n{}",
    "What is the main idea of this passage?\n{}",
    "Rewrite this in simple words:\n{}",
    "{}\n\nGive three key points from the text above.",
    "{}\nExplain what this means.",
    "Continue this text: {}",
)
END, USER, ANSWER = "<|im_end|>", "\n<|im_start|>user\n", "\n<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\n{}"
PLAIN_SYSTEM = "You are a helpful assistant."
DOCUMENT = "<|endoftext|>"
SHORTEST, LONGEST = 2048, 150_000  # tokens of a source of human text: needed, and kept


def first_id(tokenizer: Tokenizer) -> int:
    """The token that begins a document: `<|endoftext|>` if there is one, else the bos token."""
    for token in (tokenizer.token_id(DOCUMENT), tokenizer.bos_id, min(tokenizer.eos_ids)):
        if token is not None:
            return token
    raise ValueError("tokenizer must have <|endoftext|>, a bos or an eos token, and has none")


class Prose:
    """Human text in rows of any length, drawn from several sources in equal shares.

    Args:
        sources: one each, a file or a folder.
        tokenizer: of the model.
        seed: which documents are kept, and where rows start.
    """

    def __init__(self, sources: Sequence[Path], tokenizer: Tokenizer, seed: int = 0) -> None:
        end = first_id(tokenizer)
        self.random = random.Random(seed)
        self.sources: list[Tensor] = []
        for path in sources:
            found = list(documents(path))
            self.random.shuffle(found)
            ids: list[int] = []
            for text in found:
                ids += [*tokenizer.encode(text, add_special=False), end]
                if len(ids) >= LONGEST:
                    break
            if len(ids) < SHORTEST:
                raise ValueError(
                    f"text source {path} must hold {SHORTEST} tokens of documents, got {len(ids)}"
                )
            self.sources.append(torch.tensor(ids[:LONGEST]))
            logger.info("source {}: {} tokens", path.name, min(len(ids), LONGEST))

    def rows(self, count: int, length: int) -> Tensor:
        """int64 [count, length] at random places."""
        picked = []
        for _ in range(count):
            source = self.random.choice(self.sources)
            start = self.random.randrange(max(1, len(source) - length))
            picked.append(source[start : start + length])
        return torch.stack(picked)


class TextWriter:
    """Lets the dense model write its own training text: invented chats and free documents.

    A chat row is a system message, a user turn that the model invents after a random opening
    (or a task about a piece of prose), its answer, then a further user turn, until the row is full.

    Args:
        dense: the model that writes.
        tokenizer: of the model; the chat markup is ChatML when it has `<|im_end|>`,
            otherwise all rows are free documents.
        prose: source of the passages that tasks are about, or None.
        system: usual system message of a chat.
        seed: of all choices.
    """

    def __init__(
        self,
        dense: Teacher,
        tokenizer: Tokenizer,
        prose: Prose | None = None,
        system: str = PLAIN_SYSTEM,
        seed: int = 0,
    ) -> None:
        self.dense, self.tokenizer, self.prose = dense, tokenizer, prose
        self.random = random.Random(seed)
        self.first = first_id(tokenizer)
        self.end = tokenizer.token_id(END)
        self.system = system
        if self.end is None:
            logger.info("tokenizer has no {}: all written text is free documents", END)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special=False)

    def opening(self, documents: float) -> tuple[list[int], bool]:
        """The forced first tokens of a row, and whether they leave a user turn open."""
        if self.end is None or self.random.random() < documents:
            return [self.first], False
        system = self.system if self.random.random() < 0.85 else PLAIN_SYSTEM
        text = SYSTEM.format(system) + END + USER
        if self.prose is not None and self.random.random() < 0.3:
            passage = self.tokenizer.decode(
                self.prose.rows(1, self.random.randrange(40, 130))[0].tolist()
            )
            task = self.random.choice(TASKS).format(passage.strip())
            return self.ids(text + task + END + ANSWER), False
        if self.random.random() < 0.6:
            text += self.random.choice(OPENINGS)
        return self.ids(text), True

    @torch.no_grad()
    def rows(self, count: int, length: int, documents: float = 0.2) -> tuple[Tensor, Tensor]:
        """Writes all rows at once, one token a step.

        Returns:
            tokens int64 [count, length] and the final hidden states [count, length, hidden]
            that predict each next token, which distillation needs anyway.
        """
        starts = [self.opening(documents) for _ in range(count)]
        forced = [list(start) for start, _ in starts]
        asking = [user for _, user in starts]
        turn = [0] * count
        kv = KV(self.dense.config, count, length, self.dense.dtype)
        tokens = torch.zeros(count, length, dtype=torch.int64)
        hidden = torch.zeros(count, length, self.dense.config.hidden_size, dtype=self.dense.dtype)
        tokens[:, 0] = torch.tensor([queue.pop(0) for queue in forced])
        for step in range(length):
            hidden[:, step] = self.dense.hidden(tokens[:, step : step + 1], kv)[:, 0]
            if step + 1 == length:
                break
            logits = (hidden[:, step] @ self.dense.head.T).float()
            heat = torch.tensor([1.0 if user else 0.9 for user in asking]).unsqueeze(1)
            p = torch.softmax(logits / heat, -1)
            p = torch.where(p < 0.01 * p.amax(-1, keepdim=True), 0.0, p)
            drawn = (p / torch.empty_like(p).exponential_()).argmax(-1).tolist()
            for row, token in enumerate(drawn):
                if not forced[row] and self.end is not None:
                    turn[row] += 1
                    if asking[row] and turn[row] > 80:
                        token = self.end
                    if token == self.end:
                        forced[row] = [token, *self.ids(ANSWER if asking[row] else USER)]
                        asking[row], turn[row] = not asking[row], 0
                if forced[row]:
                    token = forced[row].pop(0)
                tokens[row, step + 1] = token
        return tokens, hidden
