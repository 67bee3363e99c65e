"""`fastslow chat`: a conversation in the terminal."""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING

import typer

from fastslow.tools.cli.answering.answer_options import AnswerOptions
from fastslow.tools.cli.options import expand_options, standard_input
from fastslow.tools.cli.screen import StreamedAnswer, complain, console, errors, figures, quiet_log
from fastslow.tools.prompts import check_text

if TYPE_CHECKING:
    from fastslow.llm import LLM

Turns = list[dict[str, str]]

PASTED = 0.03  # seconds: what comes this soon after a line was not typed

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
    typed = standard_input().isatty()
    quiet_log()
    with options.load() as llm:
        if llm.tokenizer is None:
            raise ValueError(f"model {options.model!r} has no tokenizer, which a chat needs")
        talk = Chat(llm, options)
        if typed:
            import readline  # importing it gives input() history and editing

            readline.parse_and_bind("set enable-bracketed-paste on")
            errors().print(
                f"{options.model}, mode {talk.mode}. /help lists the commands.", style="dim"
            )
        talk.run()
    if talk.failed and not typed:
        raise typer.Exit(1)


def read_message() -> str:
    """The next message: of a pipe one line, of a terminal also the lines that were pasted with it."""
    typed = sys.stdin.isatty()
    more = typed and sys.platform != "win32"  # where select knows no terminal
    prompt = "> " if typed else ""
    if not sys.stdout.isatty():  # there input() would write the prompt among the answers
        errors().out(prompt, end="")
        prompt = ""
    lines = [input(prompt)]
    while more and not lines[0].startswith("/") and select.select([sys.stdin], [], [], PASTED)[0]:
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines).strip()


class Chat:
    """The conversation, and its commands. `failed`: a question was refused, or the engine failed on it.
    ValueError: the command line does not fit the model."""

    def __init__(self, llm: LLM, options: AnswerOptions) -> None:
        self._llm = llm
        self._options = options
        self._call = options.call(llm)
        self._turns = options.conversation()
        self.failed = False

    @property
    def mode(self) -> str:
        """The present mode's name."""
        return str(self._call["mode"].name)

    def run(self) -> None:
        """Read and answer until the reader leaves."""
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
        from fastslow.engine.model.routed_units import RoutedUnits
        from fastslow.engine.params import nearest
        from fastslow.policies.meaning import in_a_line

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
            units, widest = RoutedUnits.of(self._llm.model.config), max(map(len, self._llm.modes))
            for preset in self._llm.modes.values():
                said = in_a_line(preset, units, self._llm.thinks)
                errors().print(f"{preset.name:<{widest}} {said}", style="dim")
            errors().print("`fastslow modes` shows more.", style="dim")
        elif argument in self._llm.modes:
            self._call = self._options.call(self._llm, argument)
            errors().print(f"Mode {self.mode} from now on.", style="dim")
        else:
            hint = nearest(argument, self._llm.modes)
            complain(ValueError(f"mode={argument!r} is unknown{hint}"))

    def _ask(self, question: str) -> None:
        typed = sys.stdin.isatty()
        thought = None if self._options.no_thinking else errors()
        turns = [*self._turns, {"role": "user", "content": question}]
        answer = StreamedAnswer(console() if typed else None, thought)
        try:
            check_text(question, "the question")
            self._answer(turns, answer)
            self._turns = turns[:-1]  # of which the oldest may be gone
        except KeyboardInterrupt:
            answer.end()
            errors().print("stopped", style="dim")
        except (ValueError, RuntimeError) as error:  # this question failed; the next may not
            answer.end()
            complain(error)
            self.failed = True
        if not typed:
            console().out(answer.text.removesuffix("\n"), highlight=False)
        if answer.text:
            self._turns = [*turns, {"role": "assistant", "content": answer.text}]

    def _answer(self, turns: Turns, answer: StreamedAnswer) -> None:
        """Show one answer; the oldest turns are taken out of a conversation that is too long for it."""
        while True:
            try:
                pieces = self._llm.stream(turns, **self._call)
                break
            except ValueError:
                if not self._drop(turns):
                    raise
        for piece in pieces:
            answer.add(piece)
            if piece.output is not None:
                answer.end()
                said = figures(piece.output, self._llm.max_model_len)
                errors().print(said, style="dim")
                if "cut by the context" in said:
                    self._drop(turns)  # which leaves the next answer more room

    def _drop(self, turns: Turns) -> bool:
        """Take the oldest question and answer out, and say so; False where there is none."""
        first = len(self._options.conversation())
        if len(turns) <= first + 1:
            return False
        del turns[first : first + 2]
        errors().print(
            "The context is full: the oldest question and answer is dropped.", style="dim"
        )
        return True
