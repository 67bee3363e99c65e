"""The log of a server: one line for each thing that happened, as JSON or as text."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from fastslow.serve.observe.log_writer import LogWriter

if TYPE_CHECKING:
    from loguru import Message, Record

LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOUD = {
    "uvicorn.access": logging.CRITICAL,
    "asyncio": logging.WARNING,
}  # we write of each request ourselves
FORMAT, LEVEL, PATH = "FASTSLOW_LOG_FORMAT", "FASTSLOW_LOG_LEVEL", "FASTSLOW_LOG_FILE"
MOST_CHARACTERS = 20_000  # of a line's message, and of each of its fields


class ServerLog:
    """All that this process logs, in one place: loguru's lines and those of `logging`, as of uvicorn.

    A line is one line, whatever clients send: JSON escapes what would end it, and so does the text.

    Args:
        format: JSON or text.
        level: the lowest that is written.
        path: a file to add to; None = standard error.

    Raises:
        ValueError: no such format or level, or the file cannot be written.
    """

    def __init__(self, format: str = "json", level: str = "INFO", path: Path | None = None) -> None:
        if format not in FORMATS:
            raise ValueError(f"log_format={format!r} must be one of {', '.join(FORMATS)}")
        if level.upper() not in LEVELS:
            raise ValueError(f"log_level={level!r} must be one of {', '.join(LEVELS).lower()}")
        self._number = _opened(path)
        self._writer = LogWriter(self._number)
        formatted = FORMATS[format]

        def sink(message: Message) -> None:
            self._writer.write(formatted(message.record))

        logger.remove()
        logger.enable("fastslow")
        # diagnose would write the values of variables, prompts among them, into tracebacks
        self._sink = logger.add(
            sink, level=level.upper(), format="", backtrace=False, diagnose=False, catch=True
        )
        root = logging.getLogger()
        root.handlers, root.level = [_ToLoguru()], logging.INFO
        for name in list(logging.root.manager.loggerDict):
            logging.getLogger(name).handlers = []
            logging.getLogger(name).propagate = True
        for name, lowest in LOUD.items():
            logging.getLogger(name).setLevel(lowest)

    @classmethod
    def of_environment(cls) -> ServerLog:
        """That of the process which started this one, as `in_environment` told it."""
        path = os.environ.get(PATH)
        format, level = os.environ.get(FORMAT, "text"), os.environ.get(LEVEL, "info")
        return cls(format, level, Path(path) if path else None)

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._writer.lost

    def close(self) -> None:
        """Write what waits."""
        logger.remove(self._sink)
        self._writer.close()
        os.close(self._number)


def in_environment(format: str, level: str, path: Path | None) -> dict[str, str]:
    """What processes started from this one need in their environment for the same log."""
    return {FORMAT: format, LEVEL: level, PATH: "" if path is None else str(path.absolute())}


class _ToLoguru(logging.Handler):
    """Hands a record of `logging` on."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        options = logger.opt(exception=record.exc_info, depth=6)
        options.bind(logger=record.name).log(level, "{}", record.getMessage())


def _opened(path: Path | None) -> int:
    if path is None:
        return os.dup(sys.stderr.fileno())
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        raise ValueError(f"log_file={str(path)!r} cannot be written: {error.strerror}") from None


def as_json(record: Record) -> str:
    """One JSON object, in ASCII: nothing in it can end the line or move a terminal's cursor."""
    line: dict[str, Any] = {
        "time": record["time"].isoformat(timespec="milliseconds"),
        "level": record["level"].name,
        "message": record["message"][:MOST_CHARACTERS],
        "logger": record["name"],
    }
    line.update({name: _bounded(value) for name, value in record["extra"].items()})
    if record["exception"] is not None:
        line["exception"] = _traced(record)[-MOST_CHARACTERS:]
    return json.dumps(line, default=str) + "\n"


def as_text(record: Record) -> str:
    """Time, level, message, then fields; what would end the line is escaped."""
    when = record["time"].strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    fields = "".join(f" {name}={_one_word(value)}" for name, value in record["extra"].items())
    message = escaped(record["message"][:MOST_CHARACTERS])
    line = f"{when} {record['level'].name:8} {message}{fields}\n"
    if record["exception"] is not None:
        lines = _traced(record)[-MOST_CHARACTERS:].splitlines()
        line += "".join(f"    {escaped(part)}\n" for part in lines)
    return line


FORMATS: dict[str, Callable[[Record], str]] = {"json": as_json, "text": as_text}


def escaped(text: str) -> str:
    """The text with all that is no visible character as \\n, \\x1b and the like."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escape(one) for one in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _one_word(value: object) -> str:
    """A field's value; in quotes where it could be taken for more than one field."""
    text = escaped(str(_bounded(value)))
    return (
        json.dumps(text, ensure_ascii=False) if " " in text or '"' in text or "=" in text else text
    )


def _bounded(value: object) -> object:
    return value[:MOST_CHARACTERS] if isinstance(value, str) else value


def _traced(record: Record) -> str:
    error = record["exception"]
    if error is None or error.type is None:
        return ""
    return "".join(traceback.format_exception(error.type, error.value, error.traceback))
