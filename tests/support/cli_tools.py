"""The command line, run in the test's own process."""

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from fastslow.tools.cli.app import LateCommand, app, main


class Done(NamedTuple):
    """The outcome of a command."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> int:
    """The exit code of `fastslow ARGUMENTS`."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def call(*arguments: object) -> Done:
    """`fastslow ARGUMENTS`, with what it prints."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = run(*arguments)
    return Done(code, out.getvalue(), err.getvalue())


def printed(*arguments: object) -> str:
    """Return what a command prints, which must succeed."""
    done = call(*arguments)
    assert done.code == 0, done
    return done.out


def record(*arguments: object) -> Any:
    """The same with --json."""
    return json.loads(printed(*arguments, "--json"))


def refusal(*arguments: object) -> str:
    """The one sentence of a command that fails."""
    done = call(*arguments)
    assert (done.code, done.out) == (2, "") and done.err.startswith("error: "), done
    assert done.err.count("\n") == 1, done.err
    return done.err


def records(*arguments: object) -> list[Any]:
    """The lines of JSON that a command prints."""
    return [json.loads(line) for line in printed(*arguments).splitlines()]


def write_lines(path: Path, *lines: object) -> Path:
    """A file of lines, as JSON where they are no text."""
    made = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(f"{line}\n" for line in made), "utf-8")
    return path


def check_ours(arguments: list[str]) -> None:
    """Refuses what the command line would refuse before it looks at any file."""
    command: Any = typer.main.get_command(app)
    context: Any = None
    while hasattr(command, "commands") and arguments:
        context = command.context_class(command, parent=context, info_name=command.name)
        assert arguments[0] in command.commands, f"no command {arguments[0]!r}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
        command = command.real() if isinstance(command, LateCommand) else command
    context = command.context_class(command, parent=context, info_name=command.name)
    given, left, _ = command.make_parser(context).parse_args(args=list(arguments))
    assert not left, f"left over: {left}"
    if "--help" not in arguments and len(arguments) > 1:
        for parameter in command.params:
            value = given.get(parameter.name)
            missing = parameter.required and (value is None or not str(value).strip())
            assert not missing, f"{parameter.name} is missing"
