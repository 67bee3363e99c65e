"""Grammars for tests: requests that are held to one, and whether an answer keeps to it."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from fastslow.engine.params import GrammarSpec
from fastslow.engine.sampling.answer_start import AtOnce, BehindTags, Spellings
from fastslow.engine.sampling.grammars.grammar import Ended, Grammar
from fastslow.engine.sampling.grammars.llguidance_grammar import GrammarCompiler, LLGuidanceMatcher
from fastslow.engine.text.thought import TagTokens, ThoughtTags
from fastslow.engine.text.vocabulary import Tokenizer

DATA = Path(__file__).parent / "data" / "json_schemas.jsonl"
THINK = ThoughtTags("<think>", "</think>")


@cache
def schemas() -> list[tuple[str, dict[str, Any]]]:
    """Kind and schema."""
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
    return [(row["kind"], row["schema"]) for row in rows]


def holds(spec: GrammarSpec, text: str) -> bool:
    """True where a whole answer keeps to a grammar."""
    if spec.json_schema is not None:
        schema = json.loads(str(spec.json_schema))
        validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        return bool(validator(schema, format_checker=validator.FORMAT_CHECKER).is_valid(json.loads(text)))
    if spec.json_object:
        return isinstance(json.loads(text), dict)
    if spec.regex is not None:
        return re.fullmatch(spec.regex, text) is not None
    return spec.choice is not None and text in spec.choice


class GrammarKit:
    """Makes grammars for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, columns: int, tags: ThoughtTags = THINK) -> None:
        self.tokenizer = tokenizer
        self.compiler = GrammarCompiler(tokenizer, columns, tags.ids(tokenizer))
        self.thoughts = TagTokens(tokenizer, tags)
        self.spellings = Spellings(tokenizer, self.thoughts, columns)

    def matcher(self, **fields: Any) -> LLGuidanceMatcher:
        return self.compiler.matcher(GrammarSpec(**fields))

    def grammar(
        self, spec: GrammarSpec, ends: frozenset[int], prompt_length: int, opened: bool | None = None
    ) -> Grammar:
        """`opened`: the text begins inside a thought; None: the model does not think."""
        start = AtOnce(self.spellings)
        behind = None if opened is None else BehindTags(self.spellings, opened)
        return Grammar(behind or start, self.compiler.matcher(spec), ends, prompt_length)


def walked(matcher: LLGuidanceMatcher, tokenizer: Tokenizer, seed: int, most: int = 400) -> str | None:
    """A text of a grammar, drawn at random, with a taste for its end; None: it did not end."""
    draws = np.random.default_rng(seed)
    text = b""
    for _ in range(most):
        ended = matcher.ended()
        if ended is Ended.MUST or (ended is Ended.MAY and draws.random() < 0.5):
            return text.decode()
        allowed = np.flatnonzero(matcher.mask()).tolist()
        if not allowed:
            return text.decode() if ended is Ended.MAY else None
        closing = [t for t in allowed if tokenizer.token_bytes(t)[-1:] in b'"}]']
        some = closing if closing and draws.random() < 0.3 else allowed
        token = some[int(draws.integers(len(some)))]
        assert matcher.accept(token), "the mask allowed it"
        text += tokenizer.token_bytes(token)
    return None
