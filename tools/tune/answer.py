"""An answer with the origin of each of its tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastslow.engine.params import SamplingParams
from fastslow.engine.text.detokenizer import Detokenizer
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.llm import LLM
from fastslow.tools.tune.candidates import is_plain
from fastslow.tools.tune.prompts import Conversation
from fastslow.tools.tune.sample import Cell


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text and the drafter that proposed it; None = the model computed it."""

    text: str
    origin: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was asked, and what came."""

    question: str
    tokens: list[Token]
    tokens_per_step: float


def watch_answer(llm: LLM, cell: Cell, prompt: Conversation, sampling: SamplingParams) -> Answer:
    """Answer a prompt and note which tokens were drafted: in each step those that were accepted, and
    then one is the model's own."""
    out = llm.chat(prompt, sampling, mode=cell.mode, speculation=cell.setting)
    drafter = None if is_plain(cell.setting) else cell.setting.drafter
    origins: list[str | None] = []
    for accepted in out.metrics.runs:
        origins += [drafter] * accepted + [None]
    assert llm.tokenizer is not None  # it answered text
    texts = token_texts(llm.tokenizer, out.token_ids)
    tokens = [Token(*token) for token in zip(texts, origins)]
    return Answer(prompt[-1]["content"], tokens, out.metrics.tokens_per_step)


def token_texts(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The text of each token; that of half a character comes with its other half."""
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.push([token]) for token in ids]
    if texts:
        texts[-1] += detokenizer.finish()
    return texts
