"""`fastslow generate --file`: prompts of a file, all checked before the first one runs; an answer a line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastslow.engine.host.progress import bar
from fastslow.engine.params import SamplingParams, nearest
from fastslow.output import Completion, GenerationError, Output
from fastslow.tools.cli.answering.answer_options import AnswerOptions
from fastslow.tools.prompts import FIELDS, Record, conversation, json_object, naming, text_lines

if TYPE_CHECKING:
    from fastslow.llm import LLM
    from fastslow.request.handle import RequestHandle
    from fastslow.request.options import Prompt

# what else such files hold, not used
NOTES = ("answer", "grading", "category", "reference", "index")
KNOWN = (*FIELDS, "mode", "sampling", "chat_template_kwargs", *NOTES)
JSON_LINES = (".jsonl", ".ndjson", ".json")
SHOWN, MEASURED = ("text", "reasoning", "finish_reason"), ("mode", "tokens", "tokens_per_second")


class FilePrompt(NamedTuple):
    """A line of the file, and what it says about its own answer: `mode`, `sampling`, `chat_template_kwargs`."""

    place: str  # for messages
    prompt: Prompt
    own: Record


class PromptFile:
    """The prompts of a file: of a text file one a line, of JSON lines those of `tools.prompts`.

    raw: the prompts are texts to continue, not questions. ValueError: the file cannot be read, is empty,
    or has a bad line, whose number is given.
    """

    def __init__(self, path: Path, options: AnswerOptions, raw: bool) -> None:
        self._options, self._raw = options, raw
        self._lines = list(self._read(path))
        if not self._lines:
            raise ValueError(f"prompts file {str(path)!r} has no prompt")

    def answers(self, llm: LLM) -> Iterator[tuple[int, Output]]:
        """The answers and their numbers in the order of the file, each as soon as those before it are
        there too; after Ctrl-C those that are finished. ValueError: a line does not fit the model; nothing
        has run then."""
        jobs = []
        for line in self._lines:
            with naming(line.place):
                call = self._call(llm, line.own)
                one = call["sampling"].model_copy(update={"n": 1})
                llm.stream(line.prompt, **{**call, "sampling": one})  # it checks, and runs nothing
            jobs.append((line.prompt, call))
        return self._run(llm, jobs)

    def _run(
        self, llm: LLM, jobs: Sequence[tuple[Prompt, dict[str, Any]]]
    ) -> Iterator[tuple[int, Output]]:
        handles = [llm.submit(prompt, **call) for prompt, call in jobs]
        try:
            shown = 0
            try:
                for handle in handles if sys.stdout.isatty() else bar(handles, "Answering"):
                    output = _result(handle)
                    shown += 1
                    yield shown - 1, output
            except KeyboardInterrupt:
                for index, handle in enumerate(handles[shown:], shown):
                    if handle.done:
                        yield index, _result(handle)
                raise
        finally:  # after Ctrl-C
            for handle in handles:
                handle.cancel()

    def _call(self, llm: LLM, own: Record) -> dict[str, Any]:
        """Keyword arguments for a line."""
        mode = own.get("mode")
        if not isinstance(mode, str | dict | None):
            raise ValueError(f"mode={mode!r} must be a name or an object with the fields of Mode")
        call = self._options.call(llm, mode)
        given: SamplingParams = call["sampling"]
        fields = {name: getattr(given, name) for name in given.model_fields_set}
        call["sampling"] = SamplingParams(**{**fields, **own.get("sampling", {})})
        if "chat_template_kwargs" in own:
            call["chat_template_kwargs"] = own["chat_template_kwargs"]
        return call

    def _read(self, path: Path) -> Iterator[FilePrompt]:
        as_json = path.suffix in JSON_LINES
        for place, line in text_lines(path, "prompts"):
            with naming(place):
                record: Record = json_object(line) if as_json else {"prompt": line.strip()}
                _check_fields(record)
                if not isinstance(record.get("sampling", {}), dict):
                    raise ValueError("sampling must be an object with the fields of SamplingParams")
                SamplingParams(**record.get("sampling", {}))
                turns = conversation(record)
                if self._raw and "messages" in record:
                    raise ValueError("messages need the chat template, which --raw leaves out")
                prompt = turns[0]["content"] if self._raw else self._with_system(turns)
            yield FilePrompt(place, prompt, record)

    def _with_system(self, turns: Any) -> Any:
        """The conversation, after the system message of the command line if it has none."""
        own = turns[0]["role"] == "system"
        return turns if own else [*self._options.conversation(), *turns]


def _result(handle: RequestHandle) -> Output:
    try:
        return handle.result()
    except GenerationError as error:  # its line says so; the others continue
        return error.outputs[0]


def _check_fields(record: Record) -> None:
    """ValueError for a field that is not known, whose value would be dropped, and for two prompts."""
    for name in record:
        if name in SamplingParams.model_fields:
            raise ValueError(f'field {name!r} belongs into "sampling": {{"{name}": ...}}')
        if name not in KNOWN and not name.endswith("id"):
            raise ValueError(f"field {name!r} is unknown{nearest(name, KNOWN)}")
    given = [name for name in FIELDS if name in record]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are two prompts: give one of them")


def record_of(output: Output, whole: bool = False) -> dict[str, Any]:
    """An answer for programs; several to a prompt under "choices". whole: all that is known."""
    every = [(choice.to_dict() if whole else {}) | _short(choice) for choice in output.choices]
    record = {**every[0], "prompt_tokens": len(output.prompt_token_ids)}
    return record | ({"choices": every} if len(every) > 1 else {})


def _short(choice: Completion) -> dict[str, Any]:
    """What most want to know; log-probabilities where they were asked for."""
    every = choice.to_dict()
    known = {name: every[name] for name in SHOWN} | {n: every["metrics"][n] for n in MEASURED}
    known["tokens_per_second"] = round(known["tokens_per_second"], 1)
    if every["metrics"]["decision"]:
        known["decision"] = every["metrics"]["decision"]  # of mode auto
    return known | {n: every[n] for n in ("logprobs", "error") if every[n] is not None}
