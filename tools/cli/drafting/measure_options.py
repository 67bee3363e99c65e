"""The options of `bench` and `tune`: what they try, and how they measure it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastslow.engine.params import SamplingParams, Speculation
from fastslow.tools.cli.options import ModelOptions, field, listed

if TYPE_CHECKING:
    from fastslow.llm import LLM
    from fastslow.tools.tune.candidates import Length

TRIED, MEASURED = "What is tried", "How it is measured"


class MeasureOptions(ModelOptions):
    """What `bench` and `tune` try, and how they measure it."""

    drafters: str | None = field(
        None, "such as ngram,self; default: all that need no further file", TRIED
    )
    lengths: str | None = field(
        None, "tokens drafted per step, such as 2,4,adaptive; default: a spread of them", TRIED
    )
    draft_model: str | Path | None = field(
        None, "folder of the small model of drafter model", TRIED
    )
    tokens: int | None = field(
        None, "most tokens of an answer; default 128 (`tune --modes`: 512)", MEASURED
    )
    limit: int | None = field(None, "take this many of the prompts, spread over the file", MEASURED)
    temperature: float | None = field(
        None, "0 = always the likeliest token; default: the mode's own", MEASURED
    )

    def sampling(self, tokens: int = 128) -> SamplingParams:
        """How all answers are sampled. tokens: most of them, where the command line does not say."""
        most = tokens if self.tokens is None else self.tokens
        if self.temperature is None:
            return SamplingParams(max_tokens=most)
        return SamplingParams(max_tokens=most, temperature=self.temperature)

    def drafting(self) -> tuple[list[Speculation], Sequence[Length]]:
        """The drafters and lengths that are named. ValueError: one of them is out of range."""
        from fastslow.tools.tune.candidates import LENGTHS, read_lengths

        lengths = LENGTHS if self.lengths is None else read_lengths(self.lengths)
        names = [] if self.drafters is None else listed("drafters", self.drafters)
        if self.draft_model is not None and self.drafters is None:
            names = ["model"]
        models = {n: self.draft_model if "model" in n.split("+") else None for n in names}
        return [Speculation(drafter=n, model=model) for n, model in models.items()], lengths

    def settings(self, llm: LLM) -> list[Speculation]:
        """What to try with a model, plain decoding left out. ValueError: nothing is left."""
        from fastslow.tools.tune.candidates import default_drafters, grid

        drafters, lengths = self.drafting()
        found = grid(drafters or default_drafters(llm), lengths)
        if not found:
            raise ValueError("drafters and lengths leave nothing but plain decoding to measure")
        return found
