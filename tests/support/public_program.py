"""A user's program: it names nothing but `fastslow`, and type checkers know what it gets."""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import assert_type

import fastslow
from fastslow import LLM, AsyncLLM, Message, Mode, Output, Piece, PieceStream, SamplingParams


def by_length(facts: fastslow.PromptFacts) -> fastslow.ModeChoice:
    return fastslow.ModeChoice("deep" if facts.words > 50 else "fast", f"{facts.words} words")


def speed(metrics: fastslow.Metrics) -> str:
    return f"{metrics.tokens_per_second:.0f} tokens/s, {metrics.mean_accepted:.1f} accepted a step"


def best(choices: Sequence[fastslow.Completion]) -> str:
    return max(choices, key=lambda choice: len(choice.text)).text


async def loop(llm: LLM, talk: Sequence[Message]) -> str:
    async with asyncio.timeout(60):
        one = assert_type(await llm.submit(talk, SamplingParams(max_tokens=4), timeout=30.0), Output)
        both = await asyncio.gather(*(llm.submit([5, i]) for i in (6, 7)))
        pieces = [assert_type(p, Piece) async for p in llm.submit("Hello", mode=None, speculation=None)]
    return one.text + "".join(output.text for output in both) + pieces[-1].text


async def served(model: str) -> int:
    async with AsyncLLM(model, max_waiting=8, kv_memory="64MiB") as llm:
        out = assert_type(await llm.generate("Hello", SamplingParams(max_tokens=4)), Output)
        chat = assert_type(await llm.chat("Hello", timeout=30.0, mode="fast"), Output)
        pieces = assert_type(llm.stream_chat("Hello", SamplingParams(max_tokens=4)), PieceStream)
        texts = [assert_type(piece, Piece).text async for piece in pieces]
        try:
            handle = assert_type(llm.submit([5, 6]), fastslow.RequestHandle)
        except fastslow.Busy as busy:
            return round(assert_type(busy.retry_after, float))
        handle.cancel()
        await llm.drain(1.0)
    return len(out.text) + len(chat.text) + len(texts)


def several(llm: LLM, prompts: Sequence[str], timeouts: Sequence[float | None]) -> list[str]:
    outputs = assert_type(llm.generate(prompts, timeout=timeouts, mode=["fast", None]), list[Output])
    outputs += assert_type(llm.chat(prompts, speculation=None), list[Output])
    return [f"{output.finish_reason}: {output.text}" for output in outputs]


def main(model: str) -> None:
    short = SamplingParams(max_tokens=8, n=2, stop="###", stop_token_ids=[7])
    listed = SamplingParams(max_tokens=8, stop=["###", "User:"])
    talk: list[dict[str, str]] = [{"role": "user", "content": "Hello"}]
    message: Message = {"role": "system", "content": "Be brief."}
    mixed: list[fastslow.Prompt] = ["One, two,", [5, 6, 7], [message, *talk]]
    doubt = Mode(base="fast", escalate=fastslow.Escalation(below=0.5, how="restart"))
    with LLM(model, auto=by_length) as llm:
        one = assert_type(llm.generate("Hello", short, mode="auto"), Output)
        print(best(one.choices), speed(one.metrics), json.dumps(one.to_dict()))
        assert_type(llm.generate([5, 6, 7], mode=by_length), Output)
        assert_type(llm.generate(talk, speculation=fastslow.Speculation(drafter="ngram")), Output)
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
        print("".join(piece.text for piece in pieces), [piece.logprobs for piece in pieces])
        left = assert_type(llm.stream("Hello"), PieceStream)
        left.close()
        print(None if left.output is None else left.output.finish_reason)
        handles: dict[fastslow.RequestHandle, str] = {llm.submit(p, timeout=9): p for p in ("One", "Two")}
        for handle in fastslow.as_completed(handles, timeout=60):
            print(handles[handle], handle.done, assert_type(handle.result(timeout=1), Output).text)
        for piece in llm.submit(talk):
            print(assert_type(piece, Piece).text)
        print(asyncio.run(loop(llm, [message, *talk])), several(llm, ["One", "Two"], [9, None]))
        print(asyncio.run(served(model)))
        stats = assert_type(llm.stats(), fastslow.EngineStats)
        print(stats.prefix_hit_rate, stats.drafters, json.dumps(stats.to_dict()))
    try:
        with LLM(model) as llm:
            print(len(assert_type(llm.generate(mixed), list[Output])))
    except fastslow.GenerationError as error:
        print(error, [output.text for output in error.outputs])


if __name__ == "__main__":
    main(sys.argv[1])
