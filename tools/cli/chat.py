"""`fastslow chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fastslow.tools.cli.answer_options import AnswerOptions
from fastslow.tools.cli.options import expand_options

if TYPE_CHECKING:
    from fastslow.llm import LLM

HELP = """\
/fast, /deep   answer in that mode from now on
/mode NAME     any preset of the model; without NAME: list them
/reset         forget the conversation
/help          this text
/quit          leave (as Ctrl-D does, or Ctrl-C twice)
Ctrl-C stops an answer; what has come of it stays in the conversation."""


@expand_options
def chat(options: AnswerOptions) -> None:
    """Talk to a model; /fast and /deep change how it thinks, /help lists the rest.

    Examples:
      fastslow chat
      fastslow chat --mode fast --system "You answer in one sentence."
      fastslow chat --model path/to/checkpoint --temperature 0.6 --top-p 0.95
      fastslow chat --model path/to/checkpoint --thinking-budget 500

    Ctrl-C stops an answer, not the program. Questions may also be piped in, one a line.
    """
    from fastslow.tools.cli.screen import console, quiet_log

    quiet_log()
    with options.load() as llm:
        talk = Chat(llm, options)
        if sys.stdin.isatty():
            import readline  # noqa: F401 - importing it gives input() history and editing

            console().print(
                f"{options.model}, mode {talk.mode}. /help lists the commands.", style="dim"
            )
        talk.run()


class Chat:
    """The conversation, and its commands.

    Args:
        llm: answers.
        options: of the command line.

    Raises:
        ValueError: the command line does not fit the model.
    """

    def __init__(self, llm: LLM, options: AnswerOptions) -> None:
        self._llm = llm
        self._options = options
        self._call = options.call(llm)
        self._turns = options.conversation()

    @property
    def mode(self) -> str:
        """The present mode's name."""
        return str(self._call["mode"].name)

    def run(self) -> None:
        """Read and answer until the reader leaves."""
        from fastslow.tools.cli.screen import console

        prompt = "> " if sys.stdin.isatty() else ""
        interrupted = False
        while True:
            try:
                line = input(prompt).strip()
                interrupted = False
                if line.startswith("/"):
                    if line == "/quit":
                        return
                    self._command(*line.split(maxsplit=1))
                elif line:
                    self._ask(line)
            except EOFError:
                console().out()
                return
            except KeyboardInterrupt:
                console().out()
                if interrupted:
                    return
                interrupted = True
                console().print("Ctrl-C again, Ctrl-D or /quit leaves.", style="dim")

    def _command(self, name: str, argument: str = "") -> None:
        from fastslow.engine.params import nearest
        from fastslow.tools.cli.screen import complain, console

        if name in ("/fast", "/deep"):
            name, argument = "/mode", name[1:]
        if name == "/help":
            console().print(HELP, style="dim")
        elif name == "/reset":
            self._turns = self._options.conversation()
            console().print("The conversation is forgotten.", style="dim")
        elif name != "/mode":
            complain(ValueError(f"{name} is no command; /help lists them"))
        elif not argument:
            widest = max(map(len, self._llm.modes))
            for preset in self._llm.modes.values():
                console().print(f"{preset.name:<{widest}} {preset.description}", style="dim")
            console().print("`fastslow modes` shows more.", style="dim")
        elif argument in self._llm.modes:
            self._call = self._options.call(self._llm, argument)
            console().print(f"Mode {self.mode} from now on.", style="dim")
        else:
            hint = nearest(argument, self._llm.modes)
            complain(ValueError(f"mode={argument!r} is unknown{hint}"))

    def _ask(self, question: str) -> None:
        from fastslow.tools.cli.screen import StreamedAnswer, complain, console, figures

        turns = [*self._turns, {"role": "user", "content": question}]
        answer = StreamedAnswer()
        try:
            for piece in self._llm.stream(turns, **self._call):
                answer.add(piece)
                if piece.output is not None:
                    answer.end()
                    console().print(figures(piece.output.metrics), style="dim")
        except KeyboardInterrupt:
            answer.end()
            console().print("stopped", style="dim")
        except (ValueError, RuntimeError) as error:  # this question failed; the next may not
            answer.end()
            complain(error)
        if answer.text:
            self._turns = [*turns, {"role": "assistant", "content": answer.text}]
