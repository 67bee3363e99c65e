"""The tokenizer: digits one by one, openPangu's marks, the words of the tasks, bytes for the rest."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from random import Random

import sentencepiece

from abacus.tasks import draw

SIZE = 512
MARKS = [f"[unused{n}]" for n in range(9, 18)]
NAMES = ["系统：", "用户：", "助手：", "工具："]
SWITCHES = ["▁/no_think", "▁/auto_think"]


def train_tokenizer(seed: int = 0, count: int = 20000) -> bytes:
    """A SentencePiece model of SIZE pieces, trained on the prompts of `count` tasks."""
    rng = Random(f"words {seed}")
    prompts: Iterator[str] = (draw(rng).prompt for _ in iter(int, 1))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=islice(prompts, count),
        model_writer=model,
        vocab_size=SIZE,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        required_chars="+-*=<,;:()",
        user_defined_symbols=[*MARKS, *NAMES, *SWITCHES],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()
