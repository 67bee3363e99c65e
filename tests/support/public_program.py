"""A user's program: it names nothing but `fastslow`, and type checkers know what it gets."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import assert_type

import fastslow
from fastslow import (
    LLM,
    Completion,
    Escalation,
    GenerationError,
    Message,
    Metrics,
    Mode,
    ModeChoice,
    Output,
    Piece,
    Prompt,
    SamplingParams,
    Situation,
    Speculation,
)


def by_length(situation: Situation) -> ModeChoice:
    return ModeChoice("deep" if situation.words > 50 else "fast", f"{situation.words} words")


def speed(metrics: Metrics) -> str:
    return f"{metrics.tokens_per_second:.0f} tokens/s, {metrics.mean_accepted:.1f} accepted a step"


def best(choices: Sequence[Completion]) -> str:
    return max(choices, key=lambda choice: len(choice.text)).text


def main(model: str) -> None:
    short = SamplingParams(max_tokens=8, n=2, stop="###", stop_token_ids=[7])
    listed = SamplingParams(max_tokens=8, stop=["###", "User:"])
    talk: list[dict[str, str]] = [{"role": "user", "content": "Hello"}]
    message: Message = {"role": "system", "content": "Be brief."}
    mixed: list[Prompt] = ["One, two,", [5, 6, 7], [message, *talk]]
    doubt = Mode(base="fast", escalate=Escalation(below=0.5, how="restart"))
    with LLM(model, auto=by_length) as llm:
        one = assert_type(llm.generate("Hello", short, mode="auto"), Output)
        print(best(one.choices), speed(one.metrics), json.dumps(one.to_dict()))
        assert_type(llm.generate([5, 6, 7], mode=by_length), Output)
        assert_type(llm.generate(talk, speculation=Speculation(drafter="ngram")), Output)
        assert_type(llm.generate("Hello", progress=False), Output)
        assert_type(llm.generate(("One", "Two"), [short, None]), list[Output])
        assert_type(llm.generate([[5, 6], [7]], speculation=["off", "auto"]), list[Output])
        assert_type(llm.generate([talk], mode=[doubt], progress=False), list[Output])
        assert_type(llm.generate(["One", [5], [message]]), list[Output])
        assert_type(llm.chat("Hello", mode={"base": "deep", "thinking_budget": 4}), Output)
        assert_type(llm.chat([message, *talk]), Output)
        parts: list[Message] = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
        begun: Message = {"role": "assistant", "content": "The answer is", "prefix": True}
        assert_type(llm.chat([*parts, begun], listed, allow_special=True), Output)
        assert_type(llm.chat(["Hello", talk], mode=["fast", doubt]), list[Output])
        pieces: list[Piece] = [*llm.stream([5, 6], mode="fast"), *llm.stream_chat(talk)]
        print("".join(piece.text for piece in pieces))
    try:
        answers = assert_type(fastslow.generate(mixed, model=model), list[Output])
        print(len(answers), assert_type(fastslow.generate("Hello", model=model), Output).text)
        assert_type(fastslow.chat(talk, model=model, mode="fast"), Output)
        assert_type(fastslow.chat(["Hello", talk], model=model), list[Output])
    except GenerationError as error:
        print(error, [output.text for output in error.outputs])


if __name__ == "__main__":
    main(sys.argv[1])
