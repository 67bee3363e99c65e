"""`fastslow generate --file`: prompts of a file, all checked before the first one runs; an answer a line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastslow.engine.checked import Params
from fastslow.engine.host.progress import bar
from fastslow.engine.params import SamplingParams
from fastslow.output import Completion, GenerationError, Output
from fastslow.request.options import given_sampling
from fastslow.tools.cli.answering.answer_options import GenerateCommand
from fastslow.tools.prompts import FIELDS, Record, conversation, json_object, naming, text_lines

if TYPE_CHECKING:
    from fastslow.llm import LLM
    from fastslow.request.handle import RequestHandle
    from fastslow.request.options import Prompt

# what else such files hold, not used
NOTES = ("answer", "grading", "category", "reference", "index")
JSON_LINES = (".jsonl", ".ndjson", ".json")
SHOWN, MEASURED = ("text", "reasoning", "finish_reason"), ("mode", "tokens", "tokens_per_second")


class LineFields(Params):
    """The fields of a line: a prompt, and what it says about its own answer."""

    messages: Any = None
    prompt: Any = None
    turns: Any = None
    question: Any = None
    mode: str | dict[str, Any] | None = None
    sampling: SamplingParams = SamplingParams()
    chat_template_kwargs: dict[str, Any] | None = None


class FilePrompt(NamedTuple):
    """A line of the file."""

    place: str  # for messages
    prompt: Prompt
    own: LineFields


def read_file(path: Path, options: GenerateCommand) -> list[FilePrompt]:
    """The prompts of a file: of a text file one a line, of JSON lines those of `tools.prompts`. ValueError:
    the file cannot be read, is empty, or has a bad line, whose number is given."""
    found = []
    for place, line in text_lines(path, "prompts"):
        with naming(place):
            as_json = path.suffix in JSON_LINES
            record: Record = json_object(line) if as_json else {"prompt": line.strip()}
            own, turns = _fields(record), conversation(record)
            if options.raw and "messages" in record:
                raise ValueError("messages need the chat template, which --raw leaves out")
            prompt: Any = turns[0]["content"] if options.raw else turns
            if not options.raw and turns[0]["role"] != "system":
                prompt = [*options.conversation(), *turns]
        found.append(FilePrompt(place, prompt, own))
    if not found:
        raise ValueError(f"prompts file {str(path)!r} has no prompt")
    return found


def _fields(record: Record) -> LineFields:
    """ValueError for a field that is not known, whose value would be dropped, and for two prompts."""
    for name in record:
        if name in SamplingParams.model_fields:
            raise ValueError(f'field {name!r} belongs into "sampling": {{"{name}": ...}}')
    given = [name for name in FIELDS if name in record]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are two prompts: give one of them")
    used = {n: v for n, v in record.items() if n not in NOTES and not n.endswith("id")}
    return LineFields(**used)


def answers(
    llm: LLM, lines: Sequence[FilePrompt], options: GenerateCommand
) -> Iterator[tuple[int, Output]]:
    """The answers and their numbers; see `in_order`. ValueError: a line does not fit the model; nothing
    has run then."""
    calls = []
    for line in lines:
        with naming(line.place):
            call = options.call(llm, line.own.mode)
            layers = given_sampling(call["sampling"]), given_sampling(line.own.sampling)
            call["sampling"] = SamplingParams(**{**layers[0], **layers[1]})
            if line.own.chat_template_kwargs is not None:
                call["chat_template_kwargs"] = line.own.chat_template_kwargs
            one = {**call, "sampling": call["sampling"].model_copy(update={"n": 1})}
            llm.stream(line.prompt, **one)  # it checks, and runs nothing
        calls.append(call)
    return in_order([llm.submit(line.prompt, **call) for line, call in zip(lines, calls)])


def in_order(handles: Sequence[RequestHandle]) -> Iterator[tuple[int, Output]]:
    """The answers in the order of the file, each as soon as those before it are there too; after Ctrl-C
    those that are finished."""
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
    finally:
        for handle in handles:
            handle.cancel()


def _result(handle: RequestHandle) -> Output:
    try:
        return handle.result()
    except GenerationError as error:  # its line says so; the others continue
        return error.outputs[0]


def record_of(output: Output, whole: bool = False) -> dict[str, Any]:
    """An answer for programs; several to a prompt under "choices". whole: all that is known."""
    every = [(choice.to_dict() if whole else {}) | _short(choice) for choice in output.choices]
    record = {**every[0], "prompt_tokens": len(output.prompt_token_ids)}
    return record | ({"choices": every} if len(every) > 1 else {})


def _short(choice: Completion) -> dict[str, Any]:
    """Return the fields that most want to know; log-probabilities where they were asked for."""
    every = choice.to_dict()
    known = {name: every[name] for name in SHOWN} | {n: every["metrics"][n] for n in MEASURED}
    known["tokens_per_second"] = round(known["tokens_per_second"], 1)
    if every["metrics"]["decision"]:
        known["decision"] = every["metrics"]["decision"]  # of mode auto
    return known | {n: every[n] for n in ("logprobs", "error") if every[n] is not None}
