"""The conversation of `fastslow chat`, and what its options mean, with an engine that plays along."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import stub
from fake_engine import output

from fastslow import LLM, Loop, Mode, Output, Piece, SamplingParams, Speculation
from fastslow.request.options import GenerateOptions
from fastslow.tools.cli.answering.answer_options import AnswerOptions
from fastslow.tools.cli.answering.chat import Chat
from fastslow.tools.cli.screen import figures


class Engine:
    """Stands in for an LLM: answers with what the test says, and remembers what it was asked."""

    def __init__(self, *answers: str | Output | BaseException) -> None:
        self.model = SimpleNamespace(config=stub("told", 8, 8, 1024, groups=8))
        self.max_model_len = 700  # the model can 1024, and memory has no room for them
        self.modes = {name: Mode(name=name) for name in ("deep", "fast")}
        self.asked: list[list[str]] = []
        self.used: list[str] = []
        self._answers = iter(answers)

    def stream(self, turns: Any, **call: Any) -> Iterator[Piece]:
        answer = next(self._answers)
        if isinstance(answer, ValueError):
            raise answer
        self.asked.append([turn["content"] for turn in turns])
        self.used.append(call["mode"].name)
        return self._pieces(answer)

    def _pieces(self, answer: str | Output | BaseException) -> Iterator[Piece]:
        if isinstance(answer, BaseException):
            yield Piece(text="half an ans")
            raise answer
        if isinstance(answer, str):
            yield Piece(text=answer)
        yield Piece(output=output(answer) if isinstance(answer, str) else answer)


def talk(engine: Engine, lines: Sequence[str | type[BaseException]], system: str | None = None) -> Chat:
    said = iter(lines)

    def read(_prompt: str) -> str:
        line = next(said, EOFError)
        if isinstance(line, str):
            return line
        raise line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.input", read)
        chat = Chat(engine, AnswerOptions(system=system))  # type: ignore[arg-type]
        chat.run()
        return chat


def test_chat_keeps_its_history_changes_and_explains_modes_until_it_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine("one", "two", "three")
    talk(engine, ["first", "second", "/reset", "third"], system="Be brief.")
    assert engine.asked[1] == ["Be brief.", "first", "one", "second"]
    assert engine.asked[2] == ["Be brief.", "third"]
    engine = Engine("one", "two", "three", "four")
    talk(engine, ["a", "/fast", "b", "/mode deep", "c", "/mode slow", "d"])
    assert engine.used == ["deep", "fast", "deep", "deep"]
    with LLM("abacus", modes={"support": Mode(base="deep", thinking_budget=30)}) as llm:
        talk(llm, ["/mode"])  # type: ignore[arg-type]
    said = next(line for line in capsys.readouterr().err.splitlines() if "support" in line)
    assert "thinks first; all 8 groups of experts; at most 30 tokens of thought" in said
    engine = Engine(KeyboardInterrupt(), "two")
    talk(engine, ["first", "second"])
    assert engine.asked[1] == ["first", "half an ans", "second"] and "stopped" in capsys.readouterr().err
    engine = Engine("one", "two")
    talk(engine, [KeyboardInterrupt, "a", KeyboardInterrupt, KeyboardInterrupt, "b"])
    assert len(engine.asked) == 1


def test_options_are_put_into_the_modes_own_sampling() -> None:
    engine = Engine()
    own = {"sampling": {"temperature": 0.6, "top_p": 0.95}, "speculation": {"nodes": 6}}
    engine.modes["deep"] = Mode.model_validate({"name": "deep", **own})
    call = AnswerOptions(
        sampling=SamplingParams(temperature=0.2), drafts=Speculation(drafter="self"), changes=Mode(groups=4)
    ).call(engine)  # type: ignore[arg-type]
    sampling = GenerateOptions(sampling=call["sampling"]).sampling_in(call["mode"])
    assert (sampling.temperature, sampling.top_p) == (0.2, 0.95)
    assert (call["speculation"].drafter, call["speculation"].nodes) == ("self", 6)
    assert (call["mode"].name, call["mode"].groups) == ("deep*", 4)


def test_a_thinking_budget_bounds_every_mode_that_thinks() -> None:
    engine: Any = Engine()
    engine.modes["fast"] = Mode(name="fast", thinking="off")
    options = AnswerOptions(changes=Mode(thinking_budget=30))
    assert options.call(engine)["mode"].thinking_budget == 30
    deep = options.call(engine, "deep")["mode"]
    assert (deep.name, deep.thinking_budget) == ("deep*", 30)
    assert options.call(engine, "fast")["mode"] is engine.modes["fast"], "off is a budget of 0"
    steered = AnswerOptions(mode=' {"loop": true}', changes=Mode(thinking_budget=30)).call(engine)
    assert (steered["mode"].thinking_budget, steered["mode"].loop) == (30, Loop())


def test_what_is_cut_or_dropped_and_a_pipes_failed_question(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine("one", "two", ValueError("needs 9 KV pages; there are 8"), "three")
    talk(engine, ["first", "second", "third"])
    assert engine.asked[2] == ["second", "two", "third"]
    assert "the oldest question and answer is" in capsys.readouterr().err
    cut = output("")
    metrics = replace(cut.metrics, prompt_tokens=700)
    cut.choices[0] = replace(cut.choices[0], finish_reason="length", metrics=metrics)
    engine = Engine("one", "two", cut, "three")
    talk(engine, ["first", "second", "third", "fourth"], system="Be brief.")
    assert engine.asked[3] == ["Be brief.", "second", "two", "fourth"]
    streams = capsys.readouterr()
    assert streams.out == "one\ntwo\n\nthree\n"
    assert "cut by the context" in streams.err and "oldest question and answer is" in streams.err
    engine = Engine(ValueError("does not fit"), "one")
    assert talk(engine, ["too long", "short"]).failed and engine.asked == [["short"]]
    streams = capsys.readouterr()
    assert streams.out == "\none\n" and "does not fit" in streams.err


def test_the_figures_say_what_cut_an_answer() -> None:
    answer = output("a").choices[0]
    assert figures(answer, 100) == (
        "mode deep | drafter suffix | drafted 5 | accepted 3 | 2.00 tokens/step | 10.0 tokens/s"
    )
    cut = replace(answer, finish_reason="length")
    tokens = cut.metrics.prompt_tokens + cut.metrics.tokens
    assert "| cut at max_tokens" in figures(cut, tokens + 1) and "| cut by the context" in figures(cut, tokens)
    assert "| timeout" in figures(replace(answer, finish_reason="timeout"), tokens)
