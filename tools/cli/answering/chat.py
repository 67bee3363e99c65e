"""`fastslow chat`: a conversation in the terminal."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from fastslow.tools.cli.answering.answer_options import AnswerOptions
from fastslow.tools.cli.options import expand_options, standard_input

if TYPE_CHECKING:
    from fastslow.llm import LLM
    from fastslow.output import Output, Piece
    from fastslow.tools.cli.screen import StreamedAnswer

Turns = list[dict[str, str]]

ANSWER = 4  # a part of the context that is left for an answer, if that may be so long
MARKS = 16  # tokens that a mode may add to a prompt, to shut or open a thought
PASTED = 0.03  # seconds: what comes so soon after a line was not typed

HELP = """\
/fast, /deep   answer in that mode from now on
/mode NAME     any preset of the model; without NAME: list them
/reset         forget the conversation
/help          this text
/quit          leave (as Ctrl-D does, or Ctrl-C twice)
Ctrl-C stops an answer; the text that has come of it (not a thought) stays in the conversation."""


@expand_options
def chat(options: AnswerOptions) -> None:
    """Talk to a model; /fast and /deep change how it thinks, /help lists the rest.

    Examples:
      fastslow chat
      fastslow chat --mode fast --system "You answer in one sentence."
      fastslow chat --model path/to/checkpoint --temperature 0.6 --top-p 0.95
      fastslow chat --model path/to/checkpoint --thinking-budget 500
      fastslow chat --speculation tuned.json --corpus corpus.safetensors

    Ctrl-C stops an answer, not the program. Pasted lines are one message. Questions may also be piped in,
    one a line; standard output then gets the answers alone, an empty line for one that is empty or failed,
    and the exit code is 1 if one failed. Where the context is full, the oldest turns are dropped.
    """
    from fastslow.tools.cli.screen import errors, quiet_log

    typed = standard_input().isatty()
    quiet_log()
    with options.load() as llm:
        talk = Chat(llm, options, _measure(llm, options))
        if typed:
            import readline  # importing it gives input() history and editing

            readline.parse_and_bind("set enable-bracketed-paste on")
            errors().print(
                f"{options.model}, mode {talk.mode}. /help lists the commands.", style="dim"
            )
        talk.run()
    if talk.failed and not typed:
        raise typer.Exit(1)


def _measure(llm: LLM, options: AnswerOptions) -> Callable[[Turns], int]:
    """A function that counts the tokens of a conversation. ValueError without a tokenizer."""
    from fastslow.engine.text.templates import load_template

    tokenizer = llm.tokenizer
    if tokenizer is None:
        raise ValueError(f"model {options.model!r} has no tokenizer, which a chat needs")
    template = load_template(options.folder, tokenizer, llm.model.config.architecture)
    return lambda turns: len(tokenizer.encode(template.render(turns), template.add_special))


def read_message() -> str:
    """The next message: of a pipe one line, of a terminal also the lines that were pasted with it."""
    from fastslow.tools.cli.screen import errors

    typed = sys.stdin.isatty()
    prompt = "> " if typed else ""
    if not sys.stdout.isatty():  # there input() would write the prompt among the answers
        errors().out(prompt, end="")
        prompt = ""
    lines = [input(prompt)]
    while typed and not lines[0].startswith("/") and select.select([sys.stdin], [], [], PASTED)[0]:
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines).strip()


class Chat:
    """The conversation, and its commands.

    Args:
        llm: answers.
        options: of the command line.
        measure: counts the tokens of a conversation.

    Attributes:
        failed: a question was refused, or the engine failed on it.

    Raises:
        ValueError: the command line does not fit the model.
    """

    def __init__(self, llm: LLM, options: AnswerOptions, measure: Callable[[Turns], int]) -> None:
        self._llm = llm
        self._options = options
        self._measure = measure
        self._call = options.call(llm)
        self._turns = options.conversation()
        self.failed = False

    @property
    def mode(self) -> str:
        """The present mode's name."""
        return str(self._call["mode"].name)

    def run(self) -> None:
        """Read and answer until the reader leaves."""
        from fastslow.tools.cli.screen import errors

        interrupted = False
        while True:
            try:
                message = read_message()
                interrupted = False
                if message.startswith("/") and "\n" not in message:
                    if message == "/quit":
                        return
                    self._command(*message.split(maxsplit=1))
                elif message:
                    self._ask(message)
            except EOFError:
                errors().out()
                return
            except KeyboardInterrupt:
                errors().out()
                if interrupted:
                    return
                interrupted = True
                errors().print("Ctrl-C again, Ctrl-D or /quit leaves.", style="dim")

    def _command(self, name: str, argument: str = "") -> None:
        from fastslow.engine.params import nearest
        from fastslow.tools.cli.screen import complain, errors

        if name in ("/fast", "/deep"):
            name, argument = "/mode", name[1:]
        if name == "/help":
            errors().print(HELP, style="dim")
        elif name == "/reset":
            self._turns = self._options.conversation()
            errors().print("The conversation is forgotten.", style="dim")
        elif name != "/mode":
            complain(ValueError(f"{name} is no command; /help lists them"))
        elif not argument:
            widest = max(map(len, self._llm.modes))
            for preset in self._llm.modes.values():
                errors().print(f"{preset.name:<{widest}} {preset.description}", style="dim")
            errors().print("`fastslow modes` shows more.", style="dim")
        elif argument in self._llm.modes:
            self._call = self._options.call(self._llm, argument)
            errors().print(f"Mode {self.mode} from now on.", style="dim")
        else:
            hint = nearest(argument, self._llm.modes)
            complain(ValueError(f"mode={argument!r} is unknown{hint}"))

    def _ask(self, question: str) -> None:
        from fastslow.tools.cli.screen import StreamedAnswer, complain, console, errors
        from fastslow.tools.prompts import check_text

        typed = sys.stdin.isatty()
        thought = None if self._options.no_thinking else errors()
        turns = [*self._turns, {"role": "user", "content": question}]
        while True:
            # of a pipe only the last try is shown: one answer to a question
            answer = StreamedAnswer(console() if typed else None, thought)
            try:
                check_text(question, "the question")
                again = self._answer(turns, answer)
            except KeyboardInterrupt:
                again = False
                answer.end()
                errors().print("stopped", style="dim")
            except (ValueError, RuntimeError) as error:  # this question failed; the next may not
                answer.end()
                complain(error)
                self.failed, again = True, False
            if not again:
                break
        if not typed:
            console().out(answer.text.removesuffix("\n"), highlight=False)
        if answer.text:
            self._turns = [*turns, {"role": "assistant", "content": answer.text}]

    def _answer(self, turns: Turns, answer: StreamedAnswer) -> bool:
        """Show one answer; whether to ask again, as the context cut it and turns were dropped."""
        from fastslow.tools.cli.screen import errors, figures

        output: Output | None = None
        for piece in self._pieces(turns):
            answer.add(piece)
            output = piece.output or output
        answer.end()
        if output is None:
            return False
        said = figures(output, self._options.context(self._llm))
        errors().print(said, style="dim")
        older = (len(turns) - self._first) // 2
        if "cut by the context" not in said:
            return False
        if older:
            self._drop(turns, (older + 1) // 2)
            errors().print("The answer was cut by the context: asked again.", style="dim")
        else:
            say = "The answer was cut by the context, and there is no older turn to drop."
            errors().print(say, style="dim")
        return older > 0

    def _pieces(self, turns: Turns) -> Iterator[Piece]:
        """The answer to a conversation, whose oldest turns are taken out if it is too long."""
        drops = 0
        while self._measure(turns[: self._first] + turns[self._first + 2 * drops :]) > self._room:
            if len(turns) <= self._first + 2 * drops + 1:
                break
            drops += 1
        while True:
            try:
                short = turns[: self._first] + turns[self._first + 2 * drops :]
                pieces = self._llm.stream(short, **self._call)
                break
            except ValueError:  # as where memory for keys and values holds less than the context
                if len(short) <= self._first + 1:
                    raise
                drops += 1
        if drops:
            self._drop(turns, drops)
        yield from pieces

    @property
    def _first(self) -> int:
        """Where in a conversation the questions begin."""
        return len(self._options.conversation())

    def _drop(self, turns: Turns, count: int) -> None:
        """Take the oldest questions and answers out, and say so."""
        from fastslow.tools.cli.screen import errors

        del turns[self._first : self._first + 2 * count]
        what = f"{count} questions and answers are" if count > 1 else "question and answer is"
        errors().print(f"The context is full: the oldest {what} dropped.", style="dim")

    @property
    def _room(self) -> int:
        """Most tokens of a conversation that leaves room for an answer."""
        from fastslow.request.options import GenerateOptions

        context = self._options.context(self._llm)
        options = GenerateOptions(sampling=self._call["sampling"])
        most = options.sampling_in(self._call["mode"]).max_tokens
        return context - min(most, context // ANSWER) - MARKS
